package main

import (
	"context"
	"time"

	"github.com/oncemill/oncemill/examples/internal/crew"
	"github.com/oncemill/oncemill/outbox"
)

// relay sends what billing has left in the outbox. `oncemill relay` does the
// same, but cannot be made to wait for its end at the worst moment.
func relay(ctx context.Context, s setting) error {
	db, err := crew.OpenDB(s.Postgres)
	if err != nil {
		return err
	}
	defer db.Close()
	broker, err := s.connect(nil)
	if err != nil {
		return err
	}
	defer broker.close()
	sink := broker.sink()
	if s.Lifetime > 0 {
		sink = &doomedSink{Sink: sink, rows: s.Lifetime, memory: s.brand().memory}
	}
	relay := &outbox.Relay{DB: db, Sink: sink, ListenURL: s.Postgres}
	return relay.Run(ctx)
}

// A doomedSink has its process killed after some rows, when the broker has
// acknowledged a batch that the relay has not deleted from the outbox yet.
type doomedSink struct {
	outbox.Sink
	rows   int
	memory time.Duration // of the broker
}

func (d *doomedSink) PublishBatch(ctx context.Context, rows []outbox.Row) []error {
	errs := d.Sink.PublishBatch(ctx, rows)
	if d.rows -= len(rows); d.rows <= 0 {
		time.Sleep(2 * d.memory) // so that the broker takes the batch a second time
		crew.AwaitKill()
	}
	return errs
}
