package main

import (
	"context"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/outbox"
)

// relay sends what billing has left in the outbox. `oncemill relay` does the
// same; this one can be made to die at the worst moment.
func relay(ctx context.Context, s setting) error {
	p, err := connect(s, losingNothing)
	if err != nil {
		return err
	}
	defer p.close()
	var sink outbox.Sink = &jetstream.Sink{Conn: p.nats}
	if s.DieAfterPublish {
		sink = mortal{sink}
	}
	relay := &outbox.Relay{DB: p.db, Sink: sink, ListenURL: s.Postgres}
	return relay.Run(ctx)
}

// mortal is a sink that kills the process when the broker has acknowledged a
// batch and the relay does not know it yet.
type mortal struct{ outbox.Sink }

func (m mortal) PublishBatch(ctx context.Context, rows []outbox.Row) []error {
	m.Sink.PublishBatch(ctx, rows)
	killMyself()
	return nil
}
