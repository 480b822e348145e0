package outbox

import (
	"context"
	"errors"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// OriginMetadata is the metadata key under which the Relay sends the time at
// which a row was written to the outbox, as RFC 3339 with nanoseconds in UTC.
// A consumer whose claims are purged compares it with the purge's watermark.
const OriginMetadata = "oncemill-origin"

// OrderingKeyMetadata is the metadata key of a message's ordering key: messages
// with the same one belong together and in order, as those about one customer do.
// A Publisher takes the entry out of the metadata and stores its value, which may
// be any bytes and also empty, in a column of its own; a Sink for Kafka makes it
// the record's key. A message without the entry has no ordering key.
const OrderingKeyMetadata = "oncemill-ordering-key"

// A Row is one message in the outbox table.
type Row struct {
	// ID is the row's primary key. It follows the order of inserts, not of
	// commits.
	ID int64

	// DedupID is a random UUID fixed when the row was inserted. A row that is
	// published twice is published under the same DedupID, and no other row has
	// it, so it is what a broker's own deduplication should look at.
	DedupID string

	// Topic is where the message goes: a NATS subject, a Kafka topic.
	Topic string

	// UUID is the Watermill message's UUID, as the handler set it.
	UUID string

	// Metadata is the Watermill message's metadata, with OriginMetadata added and
	// without OrderingKeyMetadata.
	Metadata message.Metadata

	// OrderingKey is what rows that belong together and in order have in common.
	// nil means that the row has none, which an empty key is not.
	OrderingKey []byte

	// Payload is the message's body, as it was published. nil means that it has
	// none: it is a tombstone, a Kafka record without a value. A broker that knows
	// no tombstones gets an empty body.
	Payload []byte

	// CreatedAt is the time of the transaction that wrote the row, by the
	// database's clock.
	CreatedAt time.Time

	// Attempts counts the earlier attempts to publish that failed through the
	// row's own fault.
	Attempts int
}

// A Sink publishes rows to a broker. If it has a method Validate() error as well,
// Relay.Check calls it: it looks at the Sink's fields, and asks no broker.
type Sink interface {
	// PublishBatch publishes rows in their order and returns once each is
	// acknowledged or has failed, or ctx has ended. It returns one error for
	// each row, in the same order: nil means that the broker has acknowledged
	// the row, and only that lets the relay delete it. Errors that wrap
	// ErrRefused or ErrUnavailable say more; any other error defers that row and
	// lets the others pass. An error that wraps ctx's counts as ErrUnavailable if
	// no row of the batch was acknowledged. PublishBatch does not keep or change
	// rows after it returned. Two goroutines may call it at a time.
	PublishBatch(ctx context.Context, rows []Row) []error
}

var (
	// ErrRefused is wrapped by a Sink's error for a row that can never be
	// published as it is: too large for the broker, a subject it does not
	// allow, a header it cannot carry. The relay parks such a row.
	ErrRefused = errors.New("message refused")

	// ErrUnavailable is wrapped by a Sink's error where the broker, not the row,
	// is to blame. It does not count as an attempt of the row.
	ErrUnavailable = errors.New("broker unavailable")
)
