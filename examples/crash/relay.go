package main

import (
	"context"
	"time"

	"github.com/oncemill/oncemill/examples/internal/crew"
	"github.com/oncemill/oncemill/outbox"
)

// relay takes messages from the outbox to the broker.
func relay(ctx context.Context, s setting) error {
	b, err := newBench(s)
	if err != nil {
		return err
	}
	defer b.close()
	r := &outbox.Relay{
		DB: b.db, Sink: tracedSink{b.broker.sink(), b.trace}, ListenURL: s.Postgres,
		PollInterval: 50 * time.Millisecond, PublishTimeout: 2 * time.Second,
		MinBackoff: 50 * time.Millisecond, MaxBackoff: time.Second, DrainTimeout: 3 * time.Second,
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		for ; ctx.Err() == nil; sleep(ctx, 20*time.Millisecond) {
			if r.Ready() == nil {
				crew.Say(running)
				return
			}
		}
	}()
	return r.Run(ctx)
}

// tracedSink notes what becomes of each row.
type tracedSink struct {
	outbox.Sink
	trace *trace
}

func (t tracedSink) PublishBatch(ctx context.Context, rows []outbox.Row) []error {
	errs := t.Sink.PublishBatch(ctx, rows)
	for i, row := range rows {
		if err := errs[i]; err != nil {
			t.trace.note(row.UUID, "row %d to %s, %s: %.200v", row.ID, row.Topic, row.DedupID, err)
		} else {
			t.trace.note(row.UUID, "row %d to %s, %s: acknowledged", row.ID, row.Topic, row.DedupID)
		}
	}
	return errs
}
