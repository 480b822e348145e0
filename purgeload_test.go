package oncemill_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/testenv"
)

// haveBeen has claims be nearly as old as they are kept for, as soon as they are made, so
// that they are due a second later with a Retention of 10 minutes.
const haveBeen = 2*oncemill.LeastRetention - 5*time.Minute - time.Second

func (f *fixture) claimsAgeAtOnce() {
	f.exec(fmt.Sprintf(`CREATE FUNCTION age() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		NEW.settled_at := now() - interval '%d seconds'; RETURN NEW; END $$`, int(haveBeen.Seconds())))
	f.exec(`CREATE TRIGGER age BEFORE INSERT ON oncemill.claims FOR EACH ROW EXECUTE FUNCTION age()`)
}

// A load is claims by two processes, both of which purge: each message is delivered to one
// of them, and again to the other.
type load struct {
	f      *fixture
	purged atomic.Int64
	sent   atomic.Int64
	stop   atomic.Bool
	wg     sync.WaitGroup
}

func (l *load) start(ctx context.Context) {
	t := l.f.t
	var processes [2]*oncemill.Consumer
	for i := range processes {
		in := &oncemill.Inbox{DB: l.f.open([]string{"postgres", "pgx"}[i], l.f.url), Retention: oncemill.LeastRetention, Batch: 16 * i, Observer: &oncemill.Observer{
			Purged: func(_ context.Context, _ string, n int64) { l.purged.Add(n) },
			Failed: func(_ context.Context, err *oncemill.Error) {
				if !errors.Is(err, oncemill.ErrTooOld) {
					t.Error(err)
				}
			},
		}}
		processes[i] = in.Consumer("test")
		l.wg.Go(func() {
			if err := in.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		l.wg.Go(func() { // more often than Run would
			for ctx.Err() == nil {
				if _, err := in.Purge(ctx); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			}
		})
	}
	for worker := range 8 {
		l.wg.Go(func() {
			for n := 0; !l.stop.Load(); n++ {
				l.deliver(processes[n%2], processes[(n+1)%2], fmt.Sprintf("%d-%d", worker, n))
			}
		})
	}
}

// deliver delivers a message twice. The second time its claim is there, or is purged and
// the message is refused as too old.
func (l *load) deliver(one, other *oncemill.Consumer, key string) {
	ctx := context.Background()
	if err := one.Once(ctx, key, effect(key)); err != nil {
		return // Observer.Failed has told
	}
	l.sent.Add(1)
	_ = other.OnceWith(ctx, key, oncemill.ClaimOptions{Origin: time.Now().Add(-haveBeen)}, effect(key))
}

func TestPurgeBesideALoadKeepsTheTableSmallAndEveryEffect(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.claimsAgeAtOnce()
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{f: f}
	l.start(ctx)
	defer l.wg.Wait()
	defer cancel()
	defer l.stop.Store(true)

	// If the purge did not keep up, or what it frees were not used again, the table would
	// always have the pages of all claims that were ever made, of which one takes 100 bytes.
	var left, pages int
	for deadline := time.Now().Add(100 * time.Second); ; {
		f.exec(`VACUUM oncemill.claims`) // as autovacuum does, in its own time
		sent, purged := int(l.sent.Load()), int(l.purged.Load())
		left = f.count(`SELECT count(*) FROM oncemill.claims`)
		pages = f.count(`SELECT pg_relation_size('oncemill.claims') / 8192`)
		if purged > 500 && purged > 4*left && pages < sent*100/8192/2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("purged %d claims of %d, %d are left on %d pages", purged, sent, left, pages)
		}
		time.Sleep(50 * time.Millisecond) // between two samples
	}
	l.stop.Store(true)
	cancel()
	l.wg.Wait()

	t.Logf("%d messages, %d claims purged, %d left on %d pages", l.sent.Load(), l.purged.Load(), left, pages)
	if n := f.count(`SELECT count(*) FROM effects`); n != int(l.sent.Load()) {
		t.Errorf("%d effects of %d messages", n, l.sent.Load())
	}
	if n := f.count(`SELECT count(*) FROM (SELECT FROM effects GROUP BY name HAVING count(*) > 1) AS twice`); n != 0 {
		t.Errorf("%d messages had their effect twice", n)
	}
	if n := f.count(`SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`); n != 0 {
		t.Errorf("%d deadlocks", n)
	}
}

// A holdUp keeps a purge from deleting the claim "held", in the middle of its statement.
type holdUp struct {
	f    *fixture
	conn *sql.Conn
}

func (f *fixture) holdUp() *holdUp {
	f.exec(`CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		PERFORM pg_advisory_xact_lock(1); RETURN OLD; END $$`)
	f.exec(`CREATE TRIGGER hang BEFORE DELETE ON oncemill.claims FOR EACH ROW WHEN (OLD.key = 'held') EXECUTE FUNCTION hang()`)
	conn, err := f.db.Conn(within(f.t))
	must(f.t, err)
	f.t.Cleanup(func() { conn.Close() })
	_, err = conn.ExecContext(within(f.t), `SELECT pg_advisory_lock(1)`)
	must(f.t, err)
	return &holdUp{f, conn}
}

// waitFor returns the process id of the server process that is held up.
func (h *holdUp) waitFor() (pid int) {
	h.f.t.Helper()
	for ctx := within(h.f.t); pid == 0; {
		err := h.f.db.QueryRowContext(ctx, `SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = 1 AND classid = 0 AND NOT granted
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`).Scan(&pid)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			h.f.t.Fatal(err)
		}
	}
	return pid
}

func (h *holdUp) release() {
	_, err := h.conn.ExecContext(within(h.f.t), `SELECT pg_advisory_unlock(1)`)
	must(h.f.t, err)
}

// oldClaims makes 2500 old claims, the one in the middle of which is called "held".
func (f *fixture) oldClaims() {
	f.exec(`INSERT INTO oncemill.claims (consumer, key, settled_at)
		SELECT 'test', CASE i WHEN 1250 THEN 'held' ELSE 'old' || i END, now() - interval '2 hours' + i * interval '1 second' FROM generate_series(1, 2500) AS i`)
}

func TestTwoPurgesDoNotWaitForEachOther(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "an advisory lock of a session")
	f := newFixture(t)
	f.oldClaims()
	h := f.holdUp()
	process := func() *oncemill.Inbox {
		in := &oncemill.Inbox{DB: f.open("postgres", f.url), Retention: time.Hour}
		in.Consumer("test")
		return in
	}
	one, other := process(), process()
	var purged int64
	var err error
	var wg sync.WaitGroup
	wg.Go(func() { purged, err = one.Purge(context.Background()) })
	h.waitFor()

	n, otherErr := other.Purge(within(t))
	must(t, otherErr)
	if n != 0 {
		t.Errorf("the second purged %d claims, want it to leave them to the first", n)
	}
	other.Consumer("another")
	f.exec(`INSERT INTO oncemill.claims (consumer, key, settled_at) VALUES ('another', 'old', now() - interval '2 hours')`)
	n, otherErr = other.Purge(within(t))
	must(t, otherErr)
	if n != 1 {
		t.Errorf("the second purged %d claims of another consumer, want 1", n)
	}
	must(t, other.Consumer("test").Once(within(t), "new", effect("new")))

	h.release()
	wg.Wait()
	must(t, err)
	if purged != 2500 {
		t.Errorf("the first purged %d claims, want 2500", purged)
	}
}

func TestAPurgeThatIsKilledInTheMiddleGoesOn(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "an advisory lock of a session")
	f := newFixture(t)
	f.oldClaims()
	h := f.holdUp()
	batches := make(chan int64)
	ctx, cancel := context.WithCancel(within(t))
	in := &oncemill.Inbox{DB: f.open("postgres", f.url), Retention: time.Hour, Observer: &oncemill.Observer{
		Purged: func(ctx context.Context, _ string, n int64) {
			select {
			case batches <- n:
			case <-ctx.Done():
			}
		},
	}}
	in.Consumer("test")
	ended := make(chan error)
	go func() { ended <- in.Run(ctx) }()
	next := func() int64 {
		select {
		case n := <-batches:
			return n
		case <-ctx.Done():
			t.Fatal("the purge does not go on")
			return 0
		}
	}
	purged := next()
	f.exec(`SELECT pg_terminate_backend($1)`, h.waitFor())
	h.release()
	for purged < 2500 {
		purged += next()
	}
	cancel()
	must(t, <-ended)
	if n := f.count(`SELECT count(*) FROM oncemill.claims`); n != 0 || purged != 2500 {
		t.Errorf("purged %d, %d left", purged, n)
	}
}

// A process that freezes keeps others from purging, but no longer than IdleTimeout.
func TestAPurgeThatFreezesIsEnded(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "an advisory lock of a session")
	f := newFixture(t)
	f.oldClaims()
	h := f.holdUp()
	p, url := f.throughProxy()
	frozen := &oncemill.Inbox{DB: f.open("postgres", url), Retention: time.Hour, IdleTimeout: 100 * time.Millisecond}
	frozen.Consumer("test")
	other := &oncemill.Inbox{DB: f.db, Retention: time.Hour}
	other.Consumer("test")
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = frozen.Purge(ctx) })
	defer wg.Wait()
	defer cancel()
	defer p.silent.Store(false)
	h.waitFor()
	p.silent.Store(true)
	h.release()
	for ctx, left := within(t), 1; left > 0; {
		_, err := other.Purge(ctx)
		must(t, err)
		left = f.count(`SELECT count(*) FROM oncemill.claims`)
	}
}

// Neither the claims that stay are read, nor, again and again, those that have gone while
// an old snapshot keeps vacuum from removing them.
func TestPurgeReadsNoMoreThanItDeletes(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	const old, young = 5500, 20_000
	f.exec(`INSERT INTO oncemill.claims (consumer, key, settled_at) SELECT 'test', 'old' || i, now() - interval '3 hours' + i * interval '1 second' FROM generate_series(1, $1) AS i`, old)
	f.exec(`INSERT INTO oncemill.claims (consumer, key) SELECT 'test', 'young' || i FROM generate_series(1, $1) AS i`, young)
	snapshot, err := f.db.BeginTx(within(t), &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
	must(t, err)
	defer snapshot.Rollback()
	_, err = snapshot.Exec(`SELECT FROM oncemill.watermarks`)
	must(t, err)

	const read = `SELECT COALESCE(sum(idx_tup_read), 0) + (SELECT seq_tup_read FROM pg_stat_user_tables WHERE schemaname = 'oncemill' AND relname = 'claims')
		FROM pg_stat_user_indexes WHERE schemaname = 'oncemill' AND relname = 'claims'`
	before := f.count(read)
	db, err := sql.Open("postgres", f.url)
	must(t, err)
	in := &oncemill.Inbox{DB: db, Retention: time.Hour}
	in.Consumer("test")
	n, err := in.Purge(within(t))
	must(t, err)
	must(t, db.Close()) // a session that ends tells what it has read
	if n != old {
		t.Errorf("purged %d claims, want %d", n, old)
	}
	var rows int
	for ctx := within(t); rows < old && ctx.Err() == nil; {
		rows = f.count(read) - before
	}
	if rows < old || rows > 2*old {
		t.Errorf("read %d claims to purge %d", rows, old)
	}
}
