package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
)

// A gate is a Sink that holds every batch until the test lets it go.
type gate struct {
	held chan *heldBatch
}

type heldBatch struct {
	ctx    context.Context
	rows   []outbox.Row
	answer chan error // for every row
}

func newGate() *gate { return &gate{held: make(chan *heldBatch)} }

// PublishBatch ignores ctx, as a frozen process would.
func (g *gate) PublishBatch(ctx context.Context, rows []outbox.Row) []error {
	b := &heldBatch{ctx: ctx, rows: rows, answer: make(chan error)}
	g.held <- b
	err := <-b.answer
	errs := make([]error, len(rows))
	for i := range errs {
		errs[i] = err
	}
	return errs
}

// terminateIdleInTransaction terminates the connections that are idle inside of a transaction,
// which is what a relay is while its Sink publishes.
func terminateIdleInTransaction(t *testing.T, db *sql.DB) {
	t.Helper()
	n := value[int](t, db, `
		SELECT count(*) FROM (
			SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE datname = current_database() AND state = 'idle in transaction'
		) AS terminated`)
	if n == 0 {
		t.Fatal("no transaction to terminate")
	}
}

// fault table: outbox row published, delete not committed: published again under
// the same dedup id.
func TestRelayDiesBetweenPublishAndCommit(t *testing.T) {
	t.Parallel()
	db, _ := database(t)
	publish(t, db, "t", 3)
	sink := newGate()
	relay := start(t, &outbox.Relay{DB: db, Sink: sink})

	first := receive(t, sink.held)
	terminateIdleInTransaction(t, db)
	first.answer <- nil // the broker has them

	second := receive(t, sink.held)
	second.answer <- nil
	relay.settled(t, 3)
	for i := range first.rows {
		if first.rows[i].DedupID != second.rows[i].DedupID || first.rows[i].DedupID == "" {
			t.Errorf("row %d: dedup ids %q and %q", i, first.rows[i].DedupID, second.rows[i].DedupID)
		}
		if second.rows[i].Attempts != 0 {
			t.Errorf("row %d: %d attempts", i, second.rows[i].Attempts)
		}
	}
	if n := rowCount(t, db); n != 0 {
		t.Errorf("%d rows left", n)
	}
}

// While the broker is away rows stay as they are, for however long, and the
// relay goes on by itself.
func TestBrokerAwayCostsNoAttempts(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	publish(t, db, "t", 3)
	logger, logged := hearLog()
	const outage = 4
	rounds := 0
	readyDuring := error(nil)
	sink := newRecorder(nil)
	relay := &outbox.Relay{DB: db, Logger: logger, MinBackoff: time.Millisecond, MaxAttempts: 1}
	relay.Sink = script(func(ctx context.Context, rows []outbox.Row) []error {
		if rounds++; rounds > outage {
			return sink.PublishBatch(ctx, rows)
		}
		readyDuring = relay.Ready()
		// Two that say so, and one that only says that time was up.
		return []error{outbox.ErrUnavailable, context.DeadlineExceeded, outbox.ErrUnavailable}
	})
	running := start(t, relay)
	for range 3 {
		if row := sink.next(t); row.Attempts != 0 {
			t.Errorf("row %s has %d attempts, want none", row.UUID, row.Attempts)
		}
	}
	sum := running.settled(t, 3)
	if sum.Published != 3 || sum.Deferred+sum.Parked != 0 {
		t.Errorf("batches are %+v", sum)
	}
	poll(t, func() bool { return running.Ready() == nil })
	if !errors.Is(readyDuring, outbox.ErrUnavailable) {
		t.Errorf("during the outage Ready returned %v", readyDuring)
	}
	if n := strings.Count(logged(), "level=WARN"); n != 1 || !strings.Contains(logged(), "goes on") {
		t.Errorf("%d warnings, want one and word of its end:\n%s", n, logged())
	}
}

// A slow broker that takes a part of every batch is not away.
func TestPartOfABatchIsProgress(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	publish(t, db, "t", 6)
	logger, logged := hearLog()
	relay := start(t, &outbox.Relay{DB: db, Batch: 3, PollInterval: time.Hour, Logger: logger,
		Sink: script(func(_ context.Context, rows []outbox.Row) []error {
			return []error{outbox.ErrUnavailable, outbox.ErrUnavailable, nil}[3-len(rows):]
		})})
	// The last row of each batch goes out; nothing is passed by.
	relay.settled(t, 6)
	if n := rowCount(t, db); n != 0 || strings.Contains(logged(), "cannot go on") {
		t.Errorf("%d rows left, log:\n%s", n, logged())
	}
}

// A deadline that one row misses while others are acknowledged is that row's.
func TestSlowRowIsDeferredWhileOthersPass(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	publish(t, db, "t", 2)
	relay := start(t, &outbox.Relay{DB: db, PollInterval: time.Hour, PublishTimeout: 50 * time.Millisecond,
		Sink: script(func(ctx context.Context, rows []outbox.Row) []error {
			<-ctx.Done()
			return []error{ctx.Err(), nil}[:len(rows)]
		})})
	if sum := relay.settled(t, 2); sum.Published != 1 || sum.Deferred != 1 {
		t.Errorf("batches are %+v", sum)
	}
}

// A Sink that answers for fewer rows than it got must not cost any.
func TestSinkThatMiscounts(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	publish(t, db, "t", 2)
	logger, logged := hearLog()
	calls := make(chan struct{}, 1000)
	relay := start(t, &outbox.Relay{DB: db, Logger: logger, Sink: script(func(context.Context, []outbox.Row) []error {
		calls <- struct{}{}
		return []error{nil}
	})})
	for range 3 {
		receive(t, calls)
	}
	if err := relay.stop(); err != nil {
		t.Error(err)
	}
	if n := rowCount(t, db); n != 2 {
		t.Errorf("%d rows left, want 2", n)
	}
	if !strings.Contains(logged(), "1 errors for 2 rows") {
		t.Errorf("log:\n%s", logged())
	}
}

// fault table: worker frozen inside a transaction: the server ends the
// transaction after a timeout.
func TestFrozenRelayLosesItsRows(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	publish(t, db, "t", 5)
	frozen := newGate()
	victim := start(t, &outbox.Relay{DB: db, Sink: frozen, PublishTimeout: 50 * time.Millisecond})
	held := receive(t, frozen.held)

	sink := newRecorder(nil)
	heir := start(t, &outbox.Relay{DB: db, Sink: sink})
	for i := range held.rows {
		if row := sink.next(t); row.DedupID != held.rows[i].DedupID {
			t.Errorf("row %d: dedup ids %s and %s", i, row.DedupID, held.rows[i].DedupID)
		}
	}
	heir.settled(t, 5)

	publish(t, db, "later", 1)
	heir.settled(t, 1)
	held.answer <- nil // it thaws, believes it has published, and does no harm
	if err := victim.stop(); err != nil {
		t.Error(err)
	}
	if n := len(sink.published()); n != 6 {
		t.Errorf("%d rows published, want 6", n)
	}
}

func TestStopFinishesTheBatch(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	publish(t, db, "t", 3)
	sink := newGate()
	relay := start(t, &outbox.Relay{DB: db, Sink: sink, Batch: 2})
	held := receive(t, sink.held)
	stopped := make(chan error, 1)
	go func() { stopped <- relay.stop() }()
	select {
	case err := <-stopped:
		t.Fatalf("Run returned %v while a batch was under way", err)
	case <-held.ctx.Done():
		t.Fatal("the Sink was cancelled")
	case <-time.After(100 * time.Millisecond): // nothing is to happen
	}
	held.answer <- nil
	if err := receive(t, stopped); err != nil {
		t.Fatal(err)
	}
	if n := rowCount(t, db); n != 1 {
		t.Errorf("%d rows left, want 1: the batch is finished and no other begun", n)
	}
}

func TestStopGivesUpAfterDrainTimeout(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	publish(t, db, "t", 3)
	holding := make(chan struct{})
	relay := &outbox.Relay{DB: db, DrainTimeout: 50 * time.Millisecond, Sink: script(
		func(ctx context.Context, rows []outbox.Row) []error {
			close(holding)
			<-ctx.Done()
			return []error{nil, ctx.Err(), errors.Join(outbox.ErrUnavailable, ctx.Err())}
		})}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- relay.Run(ctx) }()
	receive(t, holding)
	cancel()
	if err := receive(t, done); err == nil || !strings.Contains(err.Error(), "DrainTimeout") {
		t.Errorf("Run returned %v", err)
	}
	// What was acknowledged by then is gone, the rest is as it was.
	if got := value[string](t, db, `SELECT string_agg(uuid || ' ' || attempts, ',' ORDER BY id) FROM oncemill.outbox`); got != "t-1 0,t-2 0" {
		t.Errorf("left are %q", got)
	}
}

// Rows for a stream that is away stand first, more than a batch of them.
func TestOneStreamThatIsAwayDoesNotStopTheOthers(t *testing.T) {
	t.Parallel()
	db, _ := database(t)
	publish(t, db, "away", 25)
	publish(t, db, "fine", 5)
	sink := newRecorder(func(row outbox.Row) error {
		if row.Topic == "away" {
			return outbox.ErrUnavailable
		}
		return nil
	})
	start(t, &outbox.Relay{DB: db, Sink: sink, Batch: 10})
	for range 5 {
		if row := sink.next(t); row.Topic != "fine" {
			t.Errorf("topic is %s", row.Topic)
		}
	}
}

// The database goes away, for all connections and long enough to fail several
// rounds, and comes back.
func TestDatabaseAway(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "LISTEN, and a connection that ends with the session behind it")
	db, url := database(t)
	own := testenv.Open(t, url)
	admin := testenv.DB(t) // another database of the same server
	name := value[string](t, db, `SELECT current_database()`)
	logger, logged := hearLog()
	sink := newRecorder(nil)
	relay := start(t, &outbox.Relay{DB: own, Sink: sink, ListenURL: url, Logger: logger})
	publish(t, db, "before", 1)
	relay.settled(t, 1)
	publish(t, db, "during", 1)

	exec(t, admin, `ALTER DATABASE `+name+` WITH ALLOW_CONNECTIONS false`)
	exec(t, admin, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1`, name)
	poll(t, func() bool { return relay.Ready() != nil })
	poll(t, func() bool { return strings.Contains(logged(), "hears no wake-ups") })
	exec(t, admin, `ALTER DATABASE `+name+` WITH ALLOW_CONNECTIONS true`)

	poll(t, func() bool { return relay.Ready() == nil })
	publish(t, db, "after", 1)
	poll(t, func() bool { return rowCount(t, db) == 0 })
	// The connection may have been lost between the publishing of a row and its
	// deletion. Then it came again, under the same id.
	ids := make(map[string]map[string]bool)
	for _, row := range sink.published() {
		if ids[row.Topic] == nil {
			ids[row.Topic] = make(map[string]bool)
		}
		ids[row.Topic][row.DedupID] = true
	}
	for _, topic := range []string{"before", "during", "after"} {
		if len(ids[topic]) != 1 {
			t.Errorf("%s was published under %d ids, want 1", topic, len(ids[topic]))
		}
	}
	poll(t, func() bool { return strings.Contains(logged(), "hears wake-ups again") })
	if n := strings.Count(logged(), "cannot go on"); n != 1 || !strings.Contains(logged(), "goes on") {
		t.Errorf("%d warnings about the database, want 1:\n%s", n, logged())
	}
}

// After a failover a pool may keep a connection that works but leads to a
// replica, where every round fails. The relay gets itself another one. A session
// without rights stands in for it here.
func TestConnectionThatFailsEveryRoundIsReplaced(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "SET ROLE")
	db, url := database(t)
	role := testenv.Role(t, db)
	own := testenv.Open(t, url)
	own.SetMaxOpenConns(1)
	sink := newRecorder(nil)
	relay := start(t, &outbox.Relay{DB: own, Sink: sink, PollInterval: time.Hour})
	poll(t, func() bool { return relay.Ready() == nil })
	exec(t, own, `SET ROLE `+role)
	publish(t, db, "t", 1)
	relay.Wake()
	sink.next(t)
}
