package watermillsql

import (
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/internal/duetime"
	"github.com/oncemill/oncemill/internal/metadata"
	"github.com/oncemill/oncemill/internal/pgarray"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/schema"
)

var errInvalid = outbox.ErrInvalid

// A row is a message as the columns of the outbox take it, or those of the table scheduled.
type row struct {
	topic       string
	uuid        string
	metadata    string // JSON
	orderingKey []byte // nil: NULL
	payload     []byte // nil: NULL
	parked      string // why it is parked, "" if it is not

	due *duetime.Time // nil: it is to be sent at once
}

func encode(topic string, msg *message.Message) (row, error) {
	switch {
	case topic == "":
		return row{}, fmt.Errorf("%w: the topic is empty (give Publish the NATS subject or Kafka topic)", errInvalid)
	case !metadata.IsText(topic):
		return row{}, fmt.Errorf("%w: the topic %q contains NUL or is not UTF-8 (mend the topic)", errInvalid, topic)
	case !metadata.IsText(msg.UUID):
		return row{}, fmt.Errorf("%w: the UUID %q contains NUL or is not UTF-8 (encode it, in hexadecimal for one)", errInvalid, msg.UUID)
	}
	text, err := metadata.Encode(msg.Metadata, outbox.OrderingKeyMetadata, outbox.DeliverAfterMetadata)
	if err != nil {
		return row{}, fmt.Errorf("%w: metadata: %w", errInvalid, err)
	}
	r := row{topic: topic, uuid: msg.UUID, metadata: text, payload: msg.Payload}
	if key, ok := msg.Metadata[outbox.OrderingKeyMetadata]; ok {
		r.orderingKey = []byte(key) // not nil, even if it is empty
	}
	if value, ok := msg.Metadata[outbox.DeliverAfterMetadata]; ok {
		if r.due, err = duetime.Read(value); err != nil {
			return row{}, fmt.Errorf("%w: metadata %s is %q: %w", errInvalid, outbox.DeliverAfterMetadata, value, err)
		}
	}
	return r, nil
}

// insertQuery returns the one statement that writes rows in their order. unnest returns
// them so, and so the ids are given. Rows that are to be sent later go to the table
// scheduled. Where there are none, the statement does without the table, which is not there
// before schema version 6.
func insertQuery(schemaName string, rows []row) (query string, args []any) {
	var topic, uuid, meta, key, payload, parked, at, wait pgarray.Array
	plain, later := true, false
	for _, r := range rows {
		topic.AddText(r.topic)
		uuid.AddText(r.uuid)
		meta.AddText(r.metadata)
		key.AddBytes(r.orderingKey)
		payload.AddBytes(r.payload)
		parked.AddText(r.parked)
		dueAt, dueIn := r.due.Texts()
		at.Add(dueAt)
		wait.Add(dueIn)
		plain, later = plain && r.parked == "" && r.due == nil, later || r.due != nil
	}
	args = []any{topic.String(), uuid.String(), meta.String(), key.String(), payload.String()}
	if plain {
		return `INSERT INTO ` + schema.Quote(schemaName) + plainSQL, args
	}
	query = newSQL
	if later {
		query += `, later AS (INSERT INTO ` + schema.Quote(schemaName) + laterSQL + `)`
	}
	return query + ` INSERT INTO ` + schema.Quote(schemaName) + nowSQL, append(args, parked.String(), at.String(), wait.String())
}

// plainSQL writes rows of which none is parked or to be sent later. newSQL has others, of
// which laterSQL writes those that are to be sent later, and nowSQL the rest.
const plainSQL = `.outbox (topic, uuid, metadata, ordering_key, payload)
SELECT topic, uuid, metadata::jsonb, ordering_key::bytea, payload::bytea
FROM unnest($1::text::text[], $2::text::text[], $3::text::text[], $4::text::text[], $5::text::text[])
	AS new (topic, uuid, metadata, ordering_key, payload)`

const newSQL = `WITH new AS MATERIALIZED (
	SELECT * FROM unnest($1::text::text[], $2::text::text[], $3::text::text[], $4::text::text[], $5::text::text[], $6::text::text[], $7::text::text[], $8::text::text[])
		AS new (topic, uuid, metadata, ordering_key, payload, parked, at, microseconds)
)`

var laterSQL = `.scheduled (topic, uuid, metadata, ordering_key, payload, deliver_after)
SELECT topic, uuid, metadata::jsonb, ordering_key::bytea, payload::bytea, ` + duetime.SQL("at", "microseconds") + `
FROM new WHERE at IS NOT NULL OR microseconds IS NOT NULL`

const nowSQL = `.outbox (topic, uuid, metadata, ordering_key, payload, attempts, parked_at, last_error)
SELECT topic, uuid, metadata::jsonb, ordering_key::bytea, payload::bytea,
	CASE WHEN parked <> '' THEN 1 ELSE 0 END, CASE WHEN parked <> '' THEN now() END, nullif(parked, '')
FROM new WHERE at IS NULL AND microseconds IS NULL`
