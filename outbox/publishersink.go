package outbox

import (
	"context"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"
)

// DedupMetadata is the metadata key under which a PublisherSink sends a row's
// DedupID, unless it is told another.
const DedupMetadata = "oncemill-dedup-id"

// A PublisherSink is a Sink on top of any Watermill publisher. It publishes one
// row after another and takes a nil from Publish for the broker's
// acknowledgement, so the publisher must be a synchronous one. Messages keep
// their UUID, and have their ordering key in the metadata under
// OrderingKeyMetadata again. The payload of a tombstone is nil.
//
// An error of the publisher defers its row, unless the error wraps ErrRefused or
// ErrUnavailable. Rows that the batch's deadline leaves no time for stay as they
// are. A Publish that hangs holds up the Relay: Watermill gives no way to end it.
type PublisherSink struct {
	// Publisher publishes. Required.
	Publisher message.Publisher

	// DedupKey is the metadata key for the row's DedupID, for a publisher that
	// hands it to the broker: "Nats-Msg-Id" for one that sends metadata as NATS
	// headers. "" means DedupMetadata.
	DedupKey string
}

var _ Sink = PublisherSink{}

// PublishBatch publishes rows one after another until ctx ends.
func (s PublisherSink) PublishBatch(ctx context.Context, rows []Row) []error {
	errs := make([]error, len(rows))
	for i, row := range rows {
		if ctx.Err() != nil {
			errs[i] = fmt.Errorf("%w: no time left for the row: %w", ErrUnavailable, context.Cause(ctx))
			continue
		}
		errs[i] = s.Publisher.Publish(row.Topic, s.message(ctx, row))
	}
	return errs
}

func (s PublisherSink) message(ctx context.Context, row Row) *message.Message {
	msg := message.NewMessageWithContext(ctx, row.UUID, row.Payload)
	for key, value := range row.Metadata {
		msg.Metadata[key] = value
	}
	if row.OrderingKey != nil {
		msg.Metadata[OrderingKeyMetadata] = string(row.OrderingKey)
	}
	msg.Metadata[or(s.DedupKey, DedupMetadata)] = row.DedupID
	return msg
}
