package kafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"
)

// DefaultPublishTimeout is what the zero value of Publisher.Timeout means.
const DefaultPublishTimeout = 10 * time.Second

// A Publisher publishes to Kafka and waits until all replicas that are in sync
// have the message. It is a message.Publisher. The producer is idempotent: what it
// repeats by itself is stored once.
//
// What a handler publishes in a transaction belongs into the outbox instead,
// from where a relay sends it with a Sink.
//
// The fields must not change once it is in use, and it must not be copied.
type Publisher struct {
	// Client leads to the brokers: its options are taken over by a client that
	// the Publisher makes for itself. It stays open when the Publisher is closed.
	// Required.
	Client *kgo.Client

	// Timeout is how long a call of Publish may take; the context of the first
	// message may end earlier. 0 means DefaultPublishTimeout.
	Timeout time.Duration

	// Key tells the record key of a message, nil for none. Records with the same
	// key go to the same partition, in their order. Field nil: the key is in the
	// metadata outbox.OrderingKeyMetadata; a message that has no such entry has
	// no key.
	Key func(topic string, msg *message.Message) []byte

	producer producer
}

var _ message.Publisher = (*Publisher)(nil)

// Publish publishes messages and waits for all of them. nil means that each is
// stored. An error names the topic and the first message that failed; others of
// the call may be stored. Those that wrap outbox.ErrRefused will come again for
// the same message; after any other, the message may be stored nevertheless, and
// as late as 20 seconds after, or when a broker that was frozen goes on.
func (p *Publisher) Publish(topic string, messages ...*message.Message) error {
	if len(messages) == 0 {
		return nil
	}
	if p.Timeout < 0 {
		return fmt.Errorf("oncemill: kafka: Publisher.Timeout is %v: must be positive, or 0 for %v", p.Timeout, DefaultPublishTimeout)
	}
	client, err := p.producer.open("Publisher", p.Client, nil)
	switch {
	case errors.Is(err, ErrClosed):
		return err
	case err != nil:
		return fmt.Errorf("oncemill: kafka: %w", err)
	}
	timeout := p.Timeout
	if timeout == 0 {
		timeout = DefaultPublishTimeout
	}
	ctx, cancel := context.WithTimeout(messages[0].Context(), timeout)
	defer cancel()
	records, errs := make([]*kgo.Record, len(messages)), make([]error, len(messages))
	for i, msg := range messages {
		if records[i], err = encode(topic, msg.UUID, msg.Metadata, msg.Payload); err != nil {
			return publishError(topic, msg, err)
		}
		if p.Key != nil {
			records[i].Key = p.Key(topic, msg)
		}
	}
	p.producer.send(ctx, client, records, errs)
	for i, err := range errs {
		if err != nil {
			return publishError(topic, messages[i], err)
		}
	}
	return nil
}

func publishError(topic string, msg *message.Message, err error) error {
	return fmt.Errorf("oncemill: kafka: publish message %q to %q: %w", msg.UUID, topic, err)
}

// Close makes further calls of Publish fail with ErrClosed, and those under way
// with an error. It leaves the user's client open.
func (p *Publisher) Close() error { return p.producer.close() }
