package jetstream

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/oncemill/oncemill/internal/delivery"
)

// A Delivery is what JetStream says about one delivery of a message, beside what
// Watermill's message has room for.
type Delivery struct {
	Stream           string
	Consumer         string
	Subject          string      // the message's own, where the topic is a pattern
	StreamSequence   uint64      // of the message in its stream, the same on every delivery
	ConsumerSequence uint64      // of this delivery among those of the consumer
	Attempt          uint64      // how often the message was delivered, from 1
	Time             time.Time   // when the stream stored the message
	MsgID            string      // the header Nats-Msg-Id, "" without one
	Header           nats.Header // all headers as they came; read only
}

type contextKey struct{}

// FromContext returns the Delivery that a message's context carries. ok is false
// for a message that did not come from a Subscriber.
func FromContext(ctx context.Context) (d Delivery, ok bool) {
	p, ok := ctx.Value(contextKey{}).(*Delivery)
	if !ok {
		return Delivery{}, false
	}
	return *p, true
}

// ackSubject is how the reply subject of every message begins that a consumer
// delivers. What the server says about a pull request has no reply subject.
const ackSubject = "$JS.ACK."

func isMessage(raw *nats.Msg) bool { return strings.HasPrefix(raw.Reply, ackSubject) }

func deliveryOf(raw *nats.Msg) (*Delivery, error) {
	meta, err := raw.Metadata()
	if err != nil {
		return nil, fmt.Errorf("reply subject %q: %w", raw.Reply, err)
	}
	return &Delivery{
		Stream:           meta.Stream,
		Consumer:         meta.Consumer,
		Subject:          raw.Subject,
		StreamSequence:   meta.Sequence.Stream,
		ConsumerSequence: meta.Sequence.Consumer,
		Attempt:          meta.NumDelivered,
		Time:             meta.Timestamp,
		MsgID:            raw.Header.Get(nats.MsgIdHdr),
		Header:           raw.Header,
	}, nil
}

// with returns ctx with d in it, for FromContext and for the middlewares.
func (d *Delivery) with(ctx context.Context, created time.Time, hold func(func(context.Context) error)) context.Context {
	ctx = context.WithValue(ctx, contextKey{}, d)
	return delivery.With(ctx, delivery.Info{
		// A stream that was deleted and made again counts from 1 again. Its time
		// of creation tells it from the earlier one.
		Position: fmt.Sprintf("jetstream:%s:%d:%d", d.Stream, created.UnixNano(), d.StreamSequence),
		Topic:    d.Subject,
		Time:     d.Time,
		Attempt:  d.Attempt,
		Hold:     hold,
		Delay:    new(delivery.Delay),
	})
}
