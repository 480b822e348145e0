package watermillsql

import (
	stdsql "database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/schema"
)

// A Schema is the SchemaAdapter with which a watermill-sql Publisher writes to
// Oncemill's outbox instead of tables of its own:
//
//	sql.NewPublisher(tx, sql.PublisherConfig{SchemaAdapter: watermillsql.Schema{}}, logger)
//
// The zero value is ready to use. Messages are stored as outbox.Publisher stores them:
// outbox.OrderingKeyMetadata becomes the row's ordering key, metadata may hold any bytes,
// a nil payload is a tombstone, and what has outbox.DeliverAfterMetadata goes to the table
// scheduled, which is there from schema version 6 on. Relays find the messages at their
// next poll.
//
// Its tables are made by `oncemill migrate`. With AutoInitializeSchema the Publisher
// makes none but checks that they are there.
type Schema struct {
	// Schema is the Postgres schema that holds the table outbox. "" means
	// "oncemill".
	Schema string

	// ForwarderTopic is for programs that still wrap the Publisher in a
	// forwarder.Publisher: messages for this topic are taken out of their envelopes
	// and stored for the topics that they are meant for. "" means that there are
	// none; then an envelope is stored, and sent, as it is.
	ForwarderTopic string
}

var _ sql.SchemaAdapter = Schema{}

// ErrNoSubscriber means that a watermill-sql Subscriber was given a Schema.
var ErrNoSubscriber = errors.New("the outbox is not for subscribers: a relay sends its messages to the broker (run `oncemill relay`, or an outbox.Relay), and the broker has subscribers")

// InsertQuery returns the statement that stores msgs, in their order. A message that
// cannot be stored is an outbox.ErrInvalid.
func (s Schema) InsertQuery(topic string, msgs message.Messages) (sql.Query, error) {
	rows := make([]row, len(msgs))
	for i, msg := range msgs {
		var err error
		if rows[i], err = s.row(topic, msg); err != nil {
			return sql.Query{}, fmt.Errorf("watermillsql: message %d for topic %q: %w", i, topic, err)
		}
	}
	query, args := insertQuery(s.Schema, rows)
	return sql.Query{Query: query, Args: args}, nil
}

func (s Schema) row(topic string, msg *message.Message) (row, error) {
	if msg == nil {
		return row{}, fmt.Errorf("%w: it is nil", errInvalid)
	}
	if s.ForwarderTopic == "" || topic != s.ForwarderTopic {
		return encode(topic, msg)
	}
	destination, unwrapped, err := unwrap(msg.Payload, forwarder.DefaultMarshaler{})
	if err != nil {
		return row{}, fmt.Errorf("%w: %w (Schema.ForwarderTopic is %q: publish to it through a forwarder.Publisher only)", errInvalid, err, topic)
	}
	return encode(destination, unwrapped)
}

// SchemaInitializingQueries returns a statement that fails if Oncemill's tables are not
// there, and does nothing otherwise.
func (s Schema) SchemaInitializingQueries(string) []sql.Query {
	return []sql.Query{{Query: checkSQL(s.Schema)}}
}

// checkSQL needs no rights but those to look at the schema's version.
func checkSQL(schemaName string) string {
	quoted := schema.Quote(schemaName)
	version := quoted + ".schema_version"
	command := "oncemill migrate"
	if schemaName != "" && schemaName != schema.Default {
		command += " --schema '" + schemaName + "'"
	}
	return `DO ` + literal(fmt.Sprintf(`DECLARE
	found integer := 0;
BEGIN
	IF to_regclass(%s) IS NOT NULL THEN
		SELECT coalesce(max(version), 0) INTO found FROM %s;
	END IF;
	IF found NOT BETWEEN %d AND %d THEN
		RAISE EXCEPTION USING MESSAGE = %s || found || %s;
	END IF;
END`, literal(version), version, schema.Oldest, schema.Version,
		literal("Oncemill's tables in schema "+quoted+" are missing or of another version: found "),
		literal(fmt.Sprintf(", and this program needs %d (run `%s` on this database)", schema.Version, command))))
}

// SelectQuery returns a statement that fails with ErrNoSubscriber's text: a Subscriber
// logs it again and again.
func (s Schema) SelectQuery(string, string, sql.OffsetsAdapter) sql.Query {
	return sql.Query{Query: `DO ` + literal(`BEGIN
	RAISE EXCEPTION USING MESSAGE = `+literal(ErrNoSubscriber.Error())+`;
END`)}
}

// UnmarshalMessage returns ErrNoSubscriber.
func (s Schema) UnmarshalMessage(sql.Scanner) (sql.Row, error) { return sql.Row{}, ErrNoSubscriber }

// SubscribeIsolationLevel is the database's default: there are no subscribers.
func (s Schema) SubscribeIsolationLevel() stdsql.IsolationLevel { return stdsql.LevelDefault }

// literal is a text as it is written in SQL.
func literal(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }
