package jetstream_test

import (
	"context"
	"database/sql"
	"testing"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
)

// Rows go from Postgres to a stream on disk: 200 bytes each, as messages of a
// Publisher are. Run it with -benchtime=200000x: what a relay is for is a backlog.
// "held" is the same while another session holds a snapshot, so that vacuum cannot
// remove what is deleted. In "keys" each row has one of 1,000 ordering keys, in "key" all
// have the same one, so that each waits for the one before. "limit" is what nats.go makes of as many messages by
// itself, without a table.
func BenchmarkRelay(b *testing.B) {
	b.Run("relay", func(b *testing.B) { benchRelay(b, false, 0) })
	b.Run("held", func(b *testing.B) { benchRelay(b, true, 0) })
	b.Run("keys", func(b *testing.B) { benchRelay(b, false, 1000) })
	b.Run("keys-held", func(b *testing.B) { benchRelay(b, true, 1000) })
	b.Run("key", func(b *testing.B) { benchRelay(b, false, 1) })
	b.Run("limit", benchLimit)
}

func benchRelay(b *testing.B, held bool, keys int) {
	bench := newBench(b, onDisk)
	db := testenv.DB(b)
	if held {
		holdSnapshot(b, db)
	}
	fill(b, db, bench.topic("a"), b.N, keys)
	left := b.N
	ctx, stop := context.WithCancel(context.Background())
	relay := &outbox.Relay{DB: db, Sink: &jetstream.Sink{Conn: bench.nc}, Observer: &outbox.Observer{Batch: func(r outbox.BatchResult) {
		if left -= r.Published; left == 0 {
			stop()
		}
	}}}
	b.ReportAllocs()
	b.ResetTimer()
	must(b, relay.Run(ctx))
	b.StopTimer()
	if left != 0 {
		b.Fatalf("%d rows are left", left)
	}
	perSecond(b)
}

// perSecond reports messages per second.
func perSecond(b *testing.B) { b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s") }

func onDisk(cfg *natsjs.StreamConfig) { cfg.Storage = natsjs.FileStorage }

// holdSnapshot has a session see what is there now until the benchmark ends.
func holdSnapshot(b *testing.B, db *sql.DB) {
	tx, err := db.BeginTx(b.Context(), &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	must(b, err)
	b.Cleanup(func() { tx.Rollback() })
	_, err = tx.Exec(`SELECT FROM oncemill.outbox`)
	must(b, err)
}

// fill writes n rows to the outbox, with so many ordering keys, or none.
func fill(b *testing.B, db *sql.DB, topic string, n, keys int) {
	_, err := db.Exec(`
		INSERT INTO oncemill.outbox (topic, metadata, payload, ordering_key)
		SELECT $1, '{"tenant": "acme"}', convert_to(repeat('x', 200), 'UTF8'), convert_to((n % nullif($3::int, 0))::text, 'UTF8')
		FROM generate_series(1, $2) AS n`, topic, n, keys)
	must(b, err)
	_, err = db.Exec(`CHECKPOINT`)
	must(b, err)
}

func benchLimit(b *testing.B) {
	bench := newBench(b, onDisk)
	js, err := natsjs.New(bench.nc, natsjs.WithPublishAsyncMaxPending(4000))
	must(b, err)
	payload := make([]byte, 200)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		_, err := js.PublishAsync(bench.topic("a"), payload, natsjs.WithStallWait(patience))
		must(b, err)
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-time.After(patience):
		b.Fatal("the messages are not stored")
	}
	perSecond(b)
}
