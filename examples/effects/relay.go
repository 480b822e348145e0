package main

import (
	"context"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/examples/internal/crew"
	"github.com/oncemill/oncemill/examples/internal/streams"
	"github.com/oncemill/oncemill/outbox"
)

// relay sends what is in the outbox: receipts, and orders that go back to their topic.
// `oncemill relay` does the same.
func relay(ctx context.Context, s setting) error {
	db, err := crew.OpenDB(s.Postgres)
	if err != nil {
		return err
	}
	defer db.Close()
	broker, err := streams.Connect(s.NATS)
	if err != nil {
		return err
	}
	defer broker.Close()
	relay := &outbox.Relay{DB: db, Sink: &jetstream.Sink{Conn: broker.Conn}, ListenURL: s.Postgres}
	return relay.Run(ctx)
}
