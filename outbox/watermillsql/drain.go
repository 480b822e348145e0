package watermillsql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill/components/forwarder"

	"github.com/oncemill/oncemill/internal/dbcheck"
	"github.com/oncemill/oncemill/internal/metadata"
)

// A Drain moves the messages in a topic of watermill-sql to Oncemill's outbox, each
// exactly once, from where a consumer group has come to. The package's comment says how.
// Its fields must not be changed once it is in use.
type Drain struct {
	// DB is the database that holds watermill-sql's tables and Oncemill's. Required.
	DB *sql.DB

	// Topic is the topic that the forwarder subscribes to: its ForwarderTopic.
	// Required.
	Topic string

	// ConsumerGroup is that of the forwarder's Subscriber. "" is the group of a
	// Subscriber that was given none.
	ConsumerGroup string

	// MessagesTable and OffsetsTable are the tables of the topic as they are written
	// in SQL, with quotes and schema where they need them. "" means
	// "watermill_TOPIC" and "watermill_offsets_TOPIC", as watermill-sql's default
	// adapters have them.
	MessagesTable, OffsetsTable string

	// Schema is the Postgres schema of Oncemill's tables. "" means "oncemill".
	Schema string

	// Start is where to begin for a group that has no offsets row yet. A group that
	// has one goes on from there, whatever Start is.
	Start Start

	// Plain is for messages that are in no envelope: they go to Topic.
	Plain bool

	// Marshaler reads the envelopes. nil means forwarder.DefaultMarshaler.
	Marshaler forwarder.Marshaler

	// Park has what cannot be moved (it is no envelope, or cannot be stored) put
	// into the outbox as a parked row of Topic, as it is and with the error. Without
	// it, Run stops there.
	Park bool

	// Follow has Run go on, until its context ends, with what old writers still
	// write.
	Follow bool

	// Batch is the most messages in one transaction. 0 means 500.
	Batch int

	// PollInterval is how often Run looks for messages while there are none. 0 means
	// a second.
	PollInterval time.Duration

	// Logger hears of the beginning, of what Run waits for, of parked messages, and
	// with Follow of lost connections. nil means slog.Default().
	Logger *slog.Logger
}

// A Start is where a group begins that has no offsets row.
type Start int

const (
	// FromGroup begins nowhere: there has to be a row. Otherwise the error is
	// ErrNoGroup.
	FromGroup Start = iota
	// FromBeginning begins with the oldest message in the table.
	FromBeginning
	// FromNow leaves out what is committed, but nothing of transactions that have not
	// ended, or began after one that has not.
	FromNow
)

var (
	// ErrNoGroup means that the consumer group has no row in the offsets table.
	ErrNoGroup = errors.New("the consumer group has no offsets row")

	// ErrTables means that watermill-sql's tables are missing, or are not those of
	// DefaultPostgreSQLSchema and DefaultPostgreSQLOffsetsAdapter.
	ErrTables = errors.New("not the tables of watermill-sql's default PostgreSQL schema")

	// ErrUnreachable, ErrReadOnly and ErrSchema are as in package outbox.
	ErrUnreachable = dbcheck.ErrUnreachable
	ErrReadOnly    = dbcheck.ErrReadOnly
	ErrSchema      = dbcheck.ErrSchema
)

// A Position is that of a message in a topic, or how far a group has come: messages are
// in the order of their transactions, and then of their offsets.
type Position struct {
	Transaction string // a Postgres transaction id, xid8
	Offset      int64
}

// String is the position as errors and logs have it.
func (p Position) String() string {
	return fmt.Sprintf("offset %d of transaction %s", p.Offset, p.Transaction)
}

// Drained is what Run has done.
type Drained struct {
	Moved    int64    // messages, with the parked ones
	Parked   int64    // of these
	Position Position // of the group, after the last one
}

// A MessageError says which message could not be moved, and why. The error is an
// ErrNoEnvelope, or an outbox.ErrInvalid.
type MessageError struct {
	Table    string // as it is written in SQL
	UUID     string
	Position Position
	Err      error
}

// Error says which message cannot be moved, and why.
func (e *MessageError) Error() string {
	return fmt.Sprintf("message %q at %s in %s cannot be moved: %v", e.UUID, e.Position, e.Table, e.Err)
}

func (e *MessageError) Unwrap() error { return e.Err }

// Check returns nil if Run can start. Its errors name what is wrong and the remedy, and
// wrap ErrTables, ErrNoGroup, ErrUnreachable, ErrReadOnly or ErrSchema where those fit.
func (d *Drain) Check(ctx context.Context) error {
	w, err := d.open(ctx)
	if err != nil {
		return err
	}
	_, err = w.start(ctx, d.DB)
	return err
}

// Run moves messages until none is left, or with Follow until ctx ends. It returns nil
// then. Without Follow it waits for transactions that began before the last message's:
// they may write others that come before. When ctx ends earlier the error is its cause.
//
// What it has moved when it returns an error is committed with the group's position, and
// the next Run goes on from there. With Follow a lost connection is no error: Run tries
// again.
func (d *Drain) Run(ctx context.Context) (Drained, error) {
	w, err := d.open(ctx)
	if err != nil {
		return Drained{}, err
	}
	if err := w.begin(ctx); err != nil {
		return Drained{}, err
	}
	err = w.run(ctx)
	return w.done, err
}

func (d *Drain) validate() error {
	switch {
	case d.DB == nil:
		return errors.New("watermillsql: Drain.DB is nil: set it to the *sql.DB of the database that holds watermill-sql's tables and Oncemill's")
	case d.Topic == "":
		return errors.New("watermillsql: Drain.Topic is empty: set it to the forwarder's ForwarderTopic")
	case !metadata.IsText(d.Topic) || !metadata.IsText(d.ConsumerGroup):
		return fmt.Errorf("watermillsql: Drain.Topic is %q and Drain.ConsumerGroup %q: must be UTF-8 without NUL", d.Topic, d.ConsumerGroup)
	case d.Batch < 0:
		return fmt.Errorf("watermillsql: Drain.Batch is %d: must be at least 1, or 0 for the default", d.Batch)
	case d.PollInterval < 0:
		return fmt.Errorf("watermillsql: Drain.PollInterval is %v: must not be negative; 0 means the default", d.PollInterval)
	case d.Start < FromGroup || d.Start > FromNow:
		return fmt.Errorf("watermillsql: Drain.Start is %d: must be FromGroup, FromBeginning or FromNow", d.Start)
	}
	return nil
}
