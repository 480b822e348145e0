package outbox_test

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"go.uber.org/goleak"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/internal/txn"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/schema"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// patience bounds every wait for something that should happen at once.
const patience = 20 * time.Second

// A script is a Sink whose answers a test decides. It is a fault injector in
// place of a broker; what a real one does is tested with the broker's own Sink.
type script func(ctx context.Context, rows []outbox.Row) []error

func (s script) PublishBatch(ctx context.Context, rows []outbox.Row) []error { return s(ctx, rows) }

// A recorder is a Sink that acknowledges everything it does not have an error
// for, and remembers it.
type recorder struct {
	answer func(row outbox.Row) error // nil: acknowledges all

	mu      sync.Mutex
	rows    []outbox.Row
	batches []int
	arrived chan outbox.Row
}

func newRecorder(answer func(outbox.Row) error) *recorder {
	return &recorder{answer: answer, arrived: make(chan outbox.Row, 100_000)}
}

func (r *recorder) PublishBatch(_ context.Context, rows []outbox.Row) []error {
	errs := make([]error, len(rows))
	for i, row := range rows {
		if r.answer != nil {
			errs[i] = r.answer(row)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.batches = append(r.batches, len(rows))
	for i, row := range rows {
		if errs[i] == nil {
			r.rows = append(r.rows, row)
			r.arrived <- row
		}
	}
	return errs
}

// next returns the next row that was acknowledged.
func (r *recorder) next(t *testing.T) outbox.Row {
	t.Helper()
	return receive(t, r.arrived)
}

func (r *recorder) published() []outbox.Row {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]outbox.Row(nil), r.rows...)
}

func receive[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(patience):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

// started is a Relay that runs until the test ends.
type started struct {
	*outbox.Relay
	batches chan outbox.BatchResult // every batch, after its commit
	stop    func() error            // ends Run and returns what it returned
}

// start runs a relay. It polls often unless told otherwise.
func start(t *testing.T, relay *outbox.Relay) *started {
	t.Helper()
	s := &started{Relay: relay, batches: make(chan outbox.BatchResult, 10_000)}
	relay.PollInterval = orElse(relay.PollInterval, 20*time.Millisecond)
	relay.Observer = &outbox.Observer{Batch: func(b outbox.BatchResult) { s.batches <- b }}
	if relay.Logger == nil {
		relay.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- relay.Run(ctx) }()
	s.stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(patience):
			return fmt.Errorf("Run did not return")
		}
	})
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return s
}

func orElse(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

// settled waits until n rows have been published, deferred or parked.
func (s *started) settled(t *testing.T, n int) (sum outbox.BatchResult) {
	t.Helper()
	for sum.Published+sum.Deferred+sum.Parked < n {
		b := receive(t, s.batches)
		sum.Published += b.Published
		sum.Deferred += b.Deferred
		sum.Parked += b.Parked
		sum.Unavailable += b.Unavailable
	}
	return sum
}

// publish writes messages to the outbox, each with its topic's name and number
// as payload.
func publish(t *testing.T, db *sql.DB, topic string, n int) {
	t.Helper()
	msgs := make([]*message.Message, n)
	for i := range msgs {
		msgs[i] = message.NewMessage(fmt.Sprintf("%s-%d", topic, i), fmt.Appendf(nil, "%s-%d", topic, i))
	}
	p := &outbox.Publisher{DB: db}
	if err := p.Publish(topic, msgs...); err != nil {
		t.Fatal(err)
	}
}

// inTx runs fn as a handler inside of a transaction, with the transaction in its
// context, and ends it like Once.
func inTx(t *testing.T, db *sql.DB, fn func(ctx context.Context) error) error {
	t.Helper()
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	handle := &txn.Handle{Executor: tx}
	if err := fn(txn.With(context.Background(), handle)); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	handle.Committed()
	return nil
}

// value runs a query for one value.
func value[T any](t *testing.T, db *sql.DB, query string, args ...any) (v T) {
	t.Helper()
	if err := db.QueryRow(query, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return v
}

func exec(t *testing.T, db *sql.DB, query string, args ...any) {
	t.Helper()
	if _, err := db.Exec(query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

func rowCount(t *testing.T, db *sql.DB) int {
	t.Helper()
	return value[int](t, db, `SELECT count(*) FROM oncemill.outbox`)
}

// otherSchema creates the tables once more, under another name.
func otherSchema(t *testing.T, db *sql.DB, name string) {
	t.Helper()
	migrations, err := schema.Under(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range migrations {
		exec(t, db, m.SQL)
	}
}

// hearLog returns a logger and what was logged so far.
func hearLog() (*slog.Logger, func() string) {
	var log testenv.Log
	return slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})), log.String
}

// database returns a pool on a fresh database and its URL.
func database(t *testing.T) (*sql.DB, string) {
	t.Helper()
	url := testenv.PostgresURL(t)
	return testenv.Open(t, url), url
}

// poll waits until done returns true, for what nothing signals.
func poll(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("did not happen")
		}
	}
}
