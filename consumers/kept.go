package consumers

import (
	"context"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/internal/delivery"
)

// tellKept returns a decorator that tells the subscribers of a router for how long claims
// are kept, so that they can warn if their brokers keep messages for longer.
func tellKept(kept time.Duration) message.SubscriberDecorator {
	return func(sub message.Subscriber) (message.Subscriber, error) { return informed{sub, kept}, nil }
}

type informed struct {
	message.Subscriber
	kept time.Duration
}

func (i informed) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	return i.Subscriber.Subscribe(delivery.WithKept(ctx, i.kept), topic)
}
