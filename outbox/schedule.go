package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/internal/dbcheck"
	"github.com/oncemill/oncemill/internal/duetime"
	"github.com/oncemill/oncemill/schema"
)

// DeliverAfterMetadata is the metadata key that has a message sent later. Its value is
// either a time, as in RFC 3339, or how long to wait from the begin of the transaction, as
// time.ParseDuration reads it: "2026-12-24T18:00:00Z" or "36h". Both are compared with the
// database's clock. A time that has passed means as soon as possible.
//
// A Publisher takes the entry out of the metadata and writes the message to the table
// scheduled in place of the outbox, in the same transaction. A relay moves it to the
// outbox once it is due, and only there it gets its place among the messages with its
// ordering key. DeliverAt and DeliverIn set the entry; Cancel takes back what is not due
// yet. It needs schema version 6.
const DeliverAfterMetadata = "oncemill-deliver-after"

// DeliverAt has a message sent at a time, rather than at once. It sets
// DeliverAfterMetadata.
func DeliverAt(msg *message.Message, at time.Time) {
	setDueTime(msg, at.UTC().Format(time.RFC3339Nano))
}

// DeliverIn has a message sent a while after the begin of the transaction that it is
// published in, rather than at once. It sets DeliverAfterMetadata. Unlike DeliverAt it
// does not depend on the clock of this machine.
func DeliverIn(msg *message.Message, wait time.Duration) {
	setDueTime(msg, wait.String())
}

func setDueTime(msg *message.Message, value string) {
	if msg.Metadata == nil {
		msg.Metadata = make(message.Metadata)
	}
	msg.Metadata.Set(DeliverAfterMetadata, value)
}

// readDueTime reads the value of DeliverAfterMetadata.
func readDueTime(value string) (*duetime.Time, error) {
	due, err := duetime.Read(value)
	if err != nil {
		return nil, fmt.Errorf("%w: metadata %s is %q: %w", ErrInvalid, DeliverAfterMetadata, value, err)
	}
	return due, nil
}

// scheduleSQL writes rows that are to be sent later.
var scheduleSQL = `.scheduled (topic, uuid, metadata, ordering_key, payload, deliver_after)
SELECT topic, uuid, metadata::jsonb, ordering_key::bytea, payload::bytea,
	` + duetime.SQL("at", "microseconds") + `
FROM unnest((SELECT $1::text::text[]), (SELECT $2::text::text[]), (SELECT $3::text::text[]), (SELECT $4::text::text[]), (SELECT $5::text::text[]),
	(SELECT $6::text::text[]), (SELECT $7::text::text[])) AS new (topic, uuid, metadata, ordering_key, payload, at, microseconds)`

// writeScheduled writes a chunk of rows that are to be sent later.
func (c *rowChunk) writeScheduled(ctx context.Context, exec execFunc, schemaName string) error {
	_, err := exec(ctx, `INSERT INTO `+schema.Quote(schemaName)+scheduleSQL,
		c.topic.String(), c.uuid.String(), c.metadata.String(), c.orderKey.String(), c.payload.String(), c.at.String(), c.wait.String())
	return withoutScheduled(err)
}

// withoutScheduled is an error of a statement on the table scheduled, explained if there
// is no such table.
func withoutScheduled(err error) error {
	return dbcheck.NoTable(err, 6, "messages can be scheduled")
}

// Cancel takes back scheduled messages that are not in the outbox yet, and returns how
// many. They are named by their UUID and, unless that is "", their topic. tx is a
// transaction, which has to commit: that of a handler, or one of the caller's. If a relay
// is just moving the message to the outbox, Cancel waits for it and then returns 0: a
// message is either sent or cancelled.
//
// It looks in the schema "oncemill"; for another use Publisher.Cancel.
func Cancel(ctx context.Context, tx Executor, topic, uuid string) (cancelled int64, err error) {
	return new(Publisher).Cancel(ctx, tx, topic, uuid)
}

// Cancel is like the function Cancel, for the Publisher's schema.
func (p *Publisher) Cancel(ctx context.Context, tx Executor, topic, uuid string) (cancelled int64, err error) {
	// The message's end must not cancel the statement: that would break the connection
	// under all else that the transaction holds.
	result, err := tx.ExecContext(context.WithoutCancel(ctx), `
DELETE FROM `+schema.Quote(p.Schema)+`.scheduled WHERE uuid = $1::text AND ($2::text = '' OR topic = $2::text)`, uuid, topic)
	if err == nil {
		cancelled, err = result.RowsAffected()
	}
	if err != nil {
		return 0, fmt.Errorf("outbox: cancel topic=%q uuid=%q: %w", topic, uuid, withoutScheduled(err))
	}
	return cancelled, nil
}
