package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"
)

// The subjects, each of which is the name of its stream too. Nothing is given up
// in the demo, but whoever uses a Stack has a place for dead letters.
const (
	orders      = "orders"
	invoices    = "invoices"
	deadLetters = "dead-letter"
)

// brokersMemory is for how long the broker recognises a message that is published
// twice: the shortest time that it takes. With the usual two minutes it would hide
// what a killed relay does; after an outage it has forgotten as well.
const brokersMemory = 100 * time.Millisecond

func createStreams(ctx context.Context, js natsjs.JetStream) error {
	for _, subject := range []string{orders, invoices, deadLetters} {
		config := natsjs.StreamConfig{Name: subject, Subjects: []string{subject}, Duplicates: brokersMemory}
		if _, err := js.CreateStream(ctx, config); err != nil {
			return err
		}
	}
	return nil
}

// A flow is what the broker says about a stream and the group that consumes it.
type flow struct {
	messages   int // in the stream
	deliveries int
	delivered  int // messages at least once
	waiting    int // messages that are not acknowledged
}

// done tells whether every message has been acknowledged. The consumer hears of a
// message a moment after its publisher, so there is more to it than waiting.
func (f flow) done() bool { return f.waiting == 0 && f.delivered == f.messages }

// look asks the broker. A group whose worker has not come yet has done nothing.
func look(ctx context.Context, js natsjs.JetStream, subject, group string) (f flow, err error) {
	stream, err := js.Stream(ctx, subject)
	if err != nil {
		return f, fmt.Errorf("look up stream %s: %w", subject, err)
	}
	f.messages = int(stream.CachedInfo().State.Msgs)
	f.waiting = f.messages
	consumer, err := stream.Consumer(ctx, group+"~"+subject)
	if err != nil {
		return f, ignoreMissing(fmt.Errorf("look up consumer %s of stream %s: %w", group, subject, err))
	}
	info := consumer.CachedInfo()
	f.deliveries, f.delivered = int(info.Delivered.Consumer), int(info.Delivered.Stream)
	f.waiting = int(info.NumPending) + info.NumAckPending
	return f, nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, natsjs.ErrConsumerNotFound) {
		return nil
	}
	return err
}
