package faults_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/own"
)

// A heard is a Sink that takes everything, and remembers it.
type heard struct {
	mu     sync.Mutex
	topics []string
}

func (h *heard) PublishBatch(_ context.Context, rows []outbox.Row) []error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, row := range rows {
		h.topics = append(h.topics, row.Topic)
	}
	return make([]error, len(rows))
}

// all returns the topics of what was published, in their order.
func (h *heard) all() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.topics)
}

// relaying runs a relay until the test ends.
func relaying(t *testing.T, relay *outbox.Relay) *outbox.Relay {
	t.Helper()
	relay.PollInterval, relay.Logger = 20*time.Millisecond, slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- relay.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return relay
}

const insertRows = `INSERT INTO oncemill.outbox (topic, ordering_key) VALUES ('plain', NULL), ('keyed', 'k')`

// withRows has rows written whose COMMIT is waited for no longer.
func (u *unconfirmed) withRows(t *testing.T, endWait func(*testing.T, *unconfirmed)) {
	t.Helper()
	tx, err := u.db.BeginTx(t.Context(), nil) // a statement alone would be repeated
	must(t, err)
	_, err = tx.ExecContext(t.Context(), insertRows)
	must(t, err)
	written := make(chan error, 1)
	go func() { written <- tx.Commit() }()
	u.awaitWaiting(t, 1)
	endWait(t, u)
	if err := <-written; err == nil {
		t.Fatal("the COMMIT that was waited for no longer succeeded")
	}
	if n := u.look(t, `SELECT count(*) FROM oncemill.outbox`); n != 2 {
		t.Fatalf("%d rows can be read on the primary, not 2: the test does not reach what it is for", n)
	}
}

// awaitConfirmations returns when batches wait for the standby before they are published.
func (u *unconfirmed) awaitConfirmations(t *testing.T, n int, sink *heard) {
	t.Helper()
	eventually(t, "batches wait for the standby", func() bool {
		u.unheard(t, sink)
		return u.look(t, `SELECT count(*) FROM pg_stat_activity
			WHERE wait_event = 'SyncRep' AND datname = current_database() AND query LIKE 'SELECT pg_logical_emit_message%'`) >= n
	})
	u.unheard(t, sink)
}

func (u *unconfirmed) unheard(t *testing.T, sink *heard) {
	t.Helper()
	if all := sink.all(); len(all) > 0 {
		t.Fatalf("published, while the standby lacks it: %q", all)
	}
}

// publishes waits until the outbox is empty, and fails unless exactly these were published.
func (u *unconfirmed) publishes(t *testing.T, sink *heard, topics ...string) {
	t.Helper()
	eventually(t, "the outbox is empty", func() bool { return u.look(t, `SELECT count(*) FROM oncemill.outbox`) == 0 })
	if all := slices.Sorted(slices.Values(sink.all())); !slices.Equal(all, topics) {
		t.Errorf("%q are published, want %q", all, topics)
	}
}

// drivers are those of a relay.
var drivers = []string{"postgres", "pgx"}

func (u *unconfirmed) open(t *testing.T, driver string) *sql.DB {
	t.Helper()
	db, err := sql.Open(driver, u.pair.URL(u.name))
	must(t, err)
	t.Cleanup(func() { db.Close() })
	return db
}

// What can be read on the primary and the standby lacks is not published. When the standby
// takes over without it, it was never published, and the relay goes on with what is there.
func TestARowThatTheStandbyLacksIsNotPublished(t *testing.T) {
	t.Parallel()
	for how, endWait := range waysToEndTheWait {
		for _, driver := range drivers {
			t.Run(how+" "+driver, func(t *testing.T) {
				t.Parallel()
				u, sink := detached(t), &heard{}
				u.withRows(t, endWait)
				relaying(t, &outbox.Relay{DB: u.open(t, driver), Sink: sink})
				u.awaitConfirmations(t, 2, sink)
				must(t, u.pair.Failover(t.Context()))
				if n := u.look(t, `SELECT count(*) FROM oncemill.outbox`); n != 0 {
					t.Fatalf("the standby has %d of the rows: the test does not reach what it is for", n)
				}
				_, err := u.db.ExecContext(t.Context(), `INSERT INTO oncemill.outbox (topic, ordering_key) VALUES ('plain after', NULL), ('keyed after', 'k')`)
				must(t, err)
				u.publishes(t, sink, "keyed after", "plain after")
			})
		}
	}
}

// Nor is it published when the batch's time is up, though a COMMIT whose wait is cancelled
// succeeds; but once the standby has it.
func TestARowIsPublishedWhenTheStandbyHasIt(t *testing.T) {
	t.Parallel()
	for how, endWait := range waysToEndTheWait {
		for _, driver := range drivers {
			t.Run(how+" "+driver, func(t *testing.T) {
				t.Parallel()
				u, sink := detached(t), &heard{}
				u.withRows(t, endWait)
				relay := relaying(t, &outbox.Relay{DB: u.open(t, driver), Sink: sink, PublishTimeout: 2 * time.Second})
				for range 2 { // a COMMIT's wait is over, and another begins
					u.awaitConfirmations(t, 2, sink)
					eventually(t, "the batch's time is up", func() bool { return errors.Is(relay.Ready(), context.DeadlineExceeded) })
				}
				if err := relay.Ready(); err != nil && !strings.Contains(err.Error(), "synchronous_standby_names") {
					t.Errorf("the error does not say why: %v", err)
				}
				u.awaitConfirmations(t, 2, sink)
				must(t, u.pair.Attach(t.Context()))
				u.publishes(t, sink, "keyed", "plain")
			})
		}
	}
}

// A pool needs a second connection, and with two all goes out, of both loops.
func TestARelayWithASynchronousStandbyNeedsTwoConnections(t *testing.T) {
	t.Parallel()
	u := &unconfirmed{pair: pair(t)}
	u.name = nameOf(t, testcontainers.DatabaseOn(t, u.pair.Primary()))
	u.db = testenv.Open(t, u.pair.URL(u.name))
	const rows = 300
	_, err := u.db.ExecContext(t.Context(), `INSERT INTO oncemill.outbox (topic, ordering_key)
		SELECT 't', CASE WHEN n % 2 = 0 THEN convert_to('k' || n, 'UTF8') END FROM generate_series(1, $1::integer) n`, rows)
	must(t, err)

	one := u.open(t, "postgres")
	one.SetMaxOpenConns(1)
	if err := (&outbox.Relay{DB: one, Sink: &heard{}}).Check(t.Context()); err == nil || !strings.Contains(err.Error(), "SetMaxOpenConns") {
		t.Errorf("Check of a relay with one connection: %v", err)
	}
	for most := 2; most <= 9; most++ {
		pool, sink := u.open(t, "postgres"), &heard{}
		pool.SetMaxOpenConns(most)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		relay := &outbox.Relay{DB: pool, Sink: sink, Batch: 10, PublishTimeout: 2 * limit}
		go func() { done <- relay.Run(ctx) }()
		eventually(t, fmt.Sprintf("all is published with %d connections", most), func() bool { return u.look(t, `SELECT count(*) FROM oncemill.outbox`) == 0 })
		cancel()
		must(t, <-done)
		if n := len(sink.all()); n != rows {
			t.Errorf("%d rows were published with %d connections, want %d", n, most, rows)
		}
		_, err = u.db.ExecContext(t.Context(), `INSERT INTO oncemill.outbox (topic, ordering_key)
			SELECT 't', CASE WHEN n % 2 = 0 THEN convert_to('k' || n, 'UTF8') END FROM generate_series(1, $1::integer) n`, rows)
		must(t, err)
	}
}

// Where no COMMIT waits for a standby, the relay does not ask for one: it publishes also
// where it would not be allowed to, and with one connection.
func TestARelayWritesNothingMoreWithoutASynchronousStandby(t *testing.T) {
	t.Parallel()
	for name, settings := range map[string]map[string]string{
		"none":  {},
		"local": {"synchronous_standby_names": "away", "synchronous_commit": "local"},
		"off":   {"synchronous_standby_names": "away", "synchronous_commit": "off"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			servers <- struct{}{}
			t.Cleanup(func() { <-servers })
			server := own.Postgres(t, testcontainers.PostgresOptions{Volatile: true, Settings: settings})
			database := testcontainers.DatabaseOn(t, server)
			role := testenv.Role(t, database.DB)
			for _, statement := range []string{
				`REVOKE EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, text), pg_logical_emit_message(boolean, text, bytea) FROM PUBLIC`,
				`GRANT USAGE ON SCHEMA oncemill TO ` + role,
				`GRANT SELECT ON ALL TABLES IN SCHEMA oncemill TO ` + role,
				`GRANT UPDATE, DELETE ON oncemill.outbox TO ` + role,
				insertRows,
			} {
				_, err := database.DB.ExecContext(t.Context(), statement)
				must(t, err)
			}
			db, sink := testenv.OpenAs(t, database.URL, role), &heard{}
			db.SetMaxOpenConns(1)
			relaying(t, &outbox.Relay{DB: db, Sink: sink})
			eventually(t, "the outbox is empty", func() (empty bool) {
				must(t, database.DB.QueryRowContext(t.Context(), `SELECT NOT EXISTS (SELECT FROM oncemill.outbox)`).Scan(&empty))
				return empty
			})
			if _, err := db.ExecContext(t.Context(), `SELECT pg_logical_emit_message(true, 'oncemill', '')`); err == nil {
				t.Error("the role may write the message: the test does not reach what it is for")
			}
		})
	}
}
