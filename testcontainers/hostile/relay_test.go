package hostile_test

import (
	"testing"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/hostile"
)

func (b *bench) dispatch() *hostile.Dispatch {
	return &hostile.Dispatch{DB: testcontainers.Postgres(b.t).DB, Sink: &jetstream.Sink{Conn: b.nc}, Topic: b.prefix + ".out"}
}

// Whatever SQL writes into the outbox is refused by the table, sent once, parked with the
// reason, or tried again; and the good row behind it is sent.
func TestWhateverSQLWritesIsAccountedFor(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	d := b.dispatch()
	d.InsertAll(t)
	d.Run(t)
	b.arrived(d.Topic, func(dedupID string) { d.Arrived(t, dedupID) })
	d.Balance(t, func(r hostile.Row) hostile.Fate { return r.ToJetStream })
}

// The same for whatever is given to an outbox.Publisher, which refuses what the table
// cannot hold.
func TestWhateverIsPublishedIsAccountedFor(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	d := b.dispatch()
	fate := func(m *hostile.Message) hostile.Fate { return m.ToJetStream }
	d.PublishAll(t, fate)
	d.Run(t)
	b.arrived(d.Topic, func(dedupID string) { d.Arrived(t, dedupID) })
	d.BalancePublished(t, fate)
}
