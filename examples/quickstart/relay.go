package main

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/outbox"
)

// relay sends what billing has left in the outbox. `oncemill relay` does the
// same, but cannot be made to wait for its end at the worst moment.
func relay(ctx context.Context, s setting) error {
	db, err := openDB(s)
	if err != nil {
		return err
	}
	defer db.Close()
	conn, err := nats.Connect(s.NATS, nats.MaxReconnects(-1))
	if err != nil {
		return err
	}
	defer conn.Close()
	var sink outbox.Sink = &jetstream.Sink{Conn: conn}
	if s.Doomed {
		sink = &doomedSink{Sink: sink, rows: lifetime(s)}
	}
	relay := &outbox.Relay{DB: db, Sink: sink, ListenURL: s.Postgres}
	return relay.Run(ctx)
}

// A doomedSink has its process killed after some rows, when the broker has
// acknowledged a batch that the relay has not deleted from the outbox yet.
type doomedSink struct {
	outbox.Sink
	rows int
}

func (d *doomedSink) PublishBatch(ctx context.Context, rows []outbox.Row) []error {
	errs := d.Sink.PublishBatch(ctx, rows)
	if d.rows -= len(rows); d.rows <= 0 {
		time.Sleep(2 * brokersMemory) // so that the broker takes the batch a second time
		awaitKill()
	}
	return errs
}
