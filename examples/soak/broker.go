package main

import (
	"context"
	"errors"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/examples/internal/streams"
)

// inFlight is how many messages a subscriber of batches holds: two batches.
const inFlight = 2 * batchSize

// createStreams makes the streams. They forget messages no sooner than claims are purged.
func createStreams(ctx context.Context, b *streams.Broker) error {
	for _, topic := range []string{orders, charges, children, receipts, deadLetters} {
		config := natsjs.StreamConfig{Name: topic, Subjects: []string{topic}, MaxAge: retention, Duplicates: 2 * time.Minute}
		if _, err := b.JetStream().CreateStream(ctx, config); err != nil {
			return err
		}
	}
	return nil
}

func subscriber(b *streams.Broker, group string, most int) *jetstream.Subscriber {
	return &jetstream.Subscriber{Conn: b.Conn, Group: group, MaxInFlight: most}
}

// stored is how many messages the streams of some topics have ever had.
func stored(ctx context.Context, b *streams.Broker, topics ...string) (n int64, err error) {
	for _, topic := range topics {
		stream, err := b.JetStream().Stream(ctx, topic)
		if err != nil {
			return 0, err
		}
		n += int64(stream.CachedInfo().State.LastSeq)
	}
	return n, nil
}

// arrived is how many messages downstream has acknowledged, up to the first that it has not.
func arrived(ctx context.Context, b *streams.Broker) (n int64, err error) {
	for _, topic := range []string{children, receipts} {
		consumer, err := b.JetStream().Consumer(ctx, topic, roleDownstream+"~"+topic)
		if errors.Is(err, natsjs.ErrConsumerNotFound) {
			continue // downstream has not begun
		}
		if err != nil {
			return 0, err
		}
		n += int64(consumer.CachedInfo().AckFloor.Stream)
	}
	return n, nil
}
