package oncemill_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/stdlib"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/testenv"
)

func TestOnceRunsAMessageOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := f.consumer()
	for range 3 {
		must(t, c.Once(within(t), "k", effect("a")))
	}
	f.wantEffects("a", 1)
}

func TestOnceTellsItsObserver(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var said []string
	c := (&oncemill.Inbox{DB: f.db, Observer: &oncemill.Observer{
		Committed: func(_ context.Context, consumer, key string, took time.Duration) {
			said = append(said, "committed "+consumer+" "+key)
		},
		Duplicate: func(_ context.Context, consumer, key string) { said = append(said, "duplicate "+consumer+" "+key) },
		Failed: func(_ context.Context, err *oncemill.Error) {
			said = append(said, "failed "+string(err.Op)+" "+err.Key)
		},
	}}).Consumer("test")
	must(t, c.Once(within(t), "k", effect("a")))
	must(t, c.Once(within(t), "k", effect("a")))
	want(t, c.Once(within(t), "", effect("a")), oncemill.ErrNoKey)
	if got := strings.Join(said, ", "); got != "committed test k, duplicate test k, failed key " {
		t.Errorf("got %s", got)
	}
}

func TestCrashBeforeCommitRollsBackAndTheRedeliveryRuns(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := f.consumer()
	failure := errors.New("no")

	err := c.Once(within(t), "k", func(ctx context.Context, tx oncemill.Tx) error {
		must(t, effect("a")(ctx, tx))
		return failure
	})
	want(t, err, failure)
	if !oncemill.IsHandlerError(err) {
		t.Errorf("%v should count as the handler's", err)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic did not go on")
			}
		}()
		_ = c.Once(within(t), "k", func(ctx context.Context, tx oncemill.Tx) error {
			must(t, effect("a")(ctx, tx))
			panic("no")
		})
	}()
	f.wantEffects("a", 0)
	must(t, c.Once(within(t), "k", effect("a")))
	f.wantEffects("a", 1)
}

func TestClaimsAreScopedByConsumer(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	in := &oncemill.Inbox{DB: f.db}
	must(t, in.Consumer("one").Once(within(t), "k", effect("a")))
	must(t, in.Consumer("two").Once(within(t), "k", effect("a")))
	f.wantEffects("a", 2)
}

func TestFiftyConcurrentDeliveriesOfOneKeyHaveOneEffect(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	processes := []*oncemill.Consumer{f.consumer(), f.consumer()}
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			err := oncemill.ErrInFlight
			for errors.Is(err, oncemill.ErrInFlight) {
				err = processes[i%2].Once(within(t), "k", effect("a"))
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	f.wantEffects("a", 1)
}

func TestAKeyInFlightElsewhereIsErrInFlight(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	in := &oncemill.Inbox{DB: f.db, LockWait: 50 * time.Millisecond}
	sameProcess, otherProcess := in.Consumer("test"), (&oncemill.Inbox{DB: f.db, LockWait: 50 * time.Millisecond}).Consumer("test")
	must(t, sameProcess.Once(within(t), "k", func(ctx context.Context, tx oncemill.Tx) error {
		for _, c := range []*oncemill.Consumer{sameProcess, otherProcess} {
			err := c.Once(within(t), "k", effect("a"))
			want(t, err, oncemill.ErrInFlight)
			if oncemill.IsHandlerError(err) {
				t.Errorf("%v must not count towards a dead letter", err)
			}
		}
		return effect("a")(ctx, tx)
	}))
	must(t, otherProcess.Once(within(t), "k", effect("a")))
	f.wantEffects("a", 1)
}

func TestSettingsOfTheClaim(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "settings of the connection string")
	f := newFixture(t)
	f.exec(`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET lock_timeout = 7654', current_database());
		EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation = serializable', current_database()); END $$`)
	db := f.open("postgres", f.url)
	c := (&oncemill.Inbox{DB: db, IdleTimeout: 45 * time.Second, LockWait: time.Second}).Consumer("test")
	must(t, c.Once(within(t), "k", func(ctx context.Context, tx oncemill.Tx) error {
		for name, want := range map[string]string{
			"lock_timeout":                        "7654ms", // the session's own, not LockWait
			"idle_in_transaction_session_timeout": "45s",
			"transaction_isolation":               "read committed",
		} {
			var got string
			must(t, tx.QueryRowContext(ctx, "SELECT current_setting($1)", name).Scan(&got))
			if got != want {
				t.Errorf("%s in the handler: got %s, want %s", name, got, want)
			}
		}
		return nil
	}))
	var idle string
	must(t, db.QueryRow("SHOW idle_in_transaction_session_timeout").Scan(&idle))
	if idle != "0" {
		t.Errorf("idle_in_transaction_session_timeout leaked into the session: %s", idle)
	}
}

func TestAnyBytesAreAKey(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := f.consumer()
	keys := []string{
		"k", "K", "k ", "é", "e\u0301", "\x00", "\xff", "a\x00b", "a\x00c", "oncemill:hex:00", "oncemill:",
		strings.Repeat("x", 512), strings.Repeat("x", 513), strings.Repeat("x", 100_000), strings.Repeat("\x00", 512),
		strings.Repeat("\U0001F600", 128), "'; DROP TABLE effects; --", "%", "\n",
	}
	for range 2 {
		for i, key := range keys {
			must(t, c.Once(within(t), key, effect(fmt.Sprint(i))))
		}
	}
	for i := range keys {
		f.wantEffects(fmt.Sprint(i), 1)
	}
}

func TestAnEmptyKeyIsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	err := f.consumer().Once(within(t), "", effect("a"))
	want(t, err, oncemill.ErrNoKey)
	var e *oncemill.Error
	if !errors.As(err, &e) || e.Op != oncemill.OpKey || e.Consumer != "test" {
		t.Errorf("got %#v", err)
	}
	f.wantEffects("a", 0)
}

func TestAKeyReusedForAnotherPayloadIsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := f.consumer()
	once := func(fingerprint string) error {
		return c.OnceWith(within(t), "k", oncemill.ClaimOptions{Fingerprint: []byte(fingerprint)}, effect("a"))
	}
	must(t, once("one"))
	must(t, once("one"))
	err := once("two")
	want(t, err, oncemill.ErrKeyReused)
	if oncemill.IsHandlerError(err) {
		t.Error("a producer's mistake is not the handler's")
	}
	must(t, c.Once(within(t), "k", effect("a"))) // without a fingerprint: not compared
	f.wantEffects("a", 1)
}

func TestOnceInsideOfOnceIsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.db.SetMaxOpenConns(1) // waiting for a connection would never end
	c := f.consumer()
	err := c.Once(within(t), "k", func(ctx context.Context, tx oncemill.Tx) error {
		return c.Once(ctx, "k", effect("a"))
	})
	want(t, err, oncemill.ErrNested)
	must(t, c.Once(within(t), "k", effect("a")))
	f.wantEffects("a", 1)
}

func TestAHandlerCannotCommit(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := f.consumer()
	for name, try := range map[string]func(context.Context, oncemill.Tx) error{
		"exec":  func(ctx context.Context, tx oncemill.Tx) error { _, err := tx.ExecContext(ctx, "COMMIT"); return err },
		"plain": func(ctx context.Context, tx oncemill.Tx) error { _, err := tx.Exec("SELECT 1; COMMIT"); return err },
		"query": func(ctx context.Context, tx oncemill.Tx) error { _, err := tx.QueryContext(ctx, "END"); return err },
		"row":   func(ctx context.Context, tx oncemill.Tx) error { return tx.QueryRowContext(ctx, "ROLLBACK").Scan() },
		"prepared": func(ctx context.Context, tx oncemill.Tx) error {
			_, err := tx.PrepareContext(ctx, "commit")
			return err
		},
	} {
		err := c.Once(within(t), name, func(ctx context.Context, tx oncemill.Tx) error {
			must(t, effect("a")(ctx, tx))
			want(t, try(ctx, tx), oncemill.ErrTxControl)
			return nil // the handler does not care
		})
		want(t, err, oncemill.ErrTxControl)
		if !oncemill.IsHandlerError(err) {
			t.Errorf("%v should count as the handler's", err)
		}
	}
	f.wantEffects("a", 0)
}

func TestSavepointsAreTheHandlers(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	must(t, f.consumer().Once(within(t), "k", func(ctx context.Context, tx oncemill.Tx) error {
		for _, query := range []string{
			"SAVEPOINT s", "INSERT INTO effects VALUES ('undone')", "ROLLBACK TO SAVEPOINT s",
			"INSERT INTO effects VALUES ('kept')", "RELEASE s",
		} {
			if _, err := tx.ExecContext(ctx, query); err != nil {
				return err
			}
		}
		return nil
	}))
	f.wantEffects("undone", 0)
	f.wantEffects("kept", 1)
}

func TestNilFromAnAbortedTransactionIsAnError(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for _, driver := range []string{"postgres", "pgx"} {
		c := (&oncemill.Inbox{DB: f.open(driver, f.url)}).Consumer("test")
		err := c.Once(within(t), driver, func(ctx context.Context, tx oncemill.Tx) error {
			must(t, effect("a")(ctx, tx))
			_, _ = tx.ExecContext(ctx, "SELECT 1/0")
			return nil
		})
		want(t, err, oncemill.ErrTxAborted)
		if !oncemill.IsHandlerError(err) {
			t.Errorf("%s: %v should count as the handler's", driver, err)
		}
	}
	f.wantEffects("a", 0)
}

func TestADeferredConstraintCountsAsTheHandlers(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.exec(`CREATE TABLE parents (id int PRIMARY KEY)`)
	f.exec(`CREATE TABLE children (parent int REFERENCES parents DEFERRABLE INITIALLY DEFERRED)`)
	for _, driver := range []string{"postgres", "pgx"} {
		c := (&oncemill.Inbox{DB: f.open(driver, f.url)}).Consumer("test")
		err := c.Once(within(t), driver, func(ctx context.Context, tx oncemill.Tx) error {
			_, err := tx.ExecContext(ctx, "INSERT INTO children VALUES (1)")
			return err
		})
		var e *oncemill.Error
		if !errors.As(err, &e) || e.Op != oncemill.OpCommit || !oncemill.IsHandlerError(err) {
			t.Errorf("%s: got %v", driver, err)
		}
	}
}

func TestATxEndsWithItsHandler(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var kept oncemill.Tx
	must(t, f.consumer().Once(within(t), "k", func(_ context.Context, tx oncemill.Tx) error {
		kept = tx
		return nil
	}))
	ctx := within(t)
	stmt, err := f.db.Prepare("SELECT 1")
	must(t, err)
	defer stmt.Close()
	for target, tx := range map[error]oncemill.Tx{oncemill.ErrTxEnded: kept, oncemill.ErrNoTx: {}} {
		_, err := tx.ExecContext(ctx, "SELECT 1")
		want(t, err, target)
		_, err = tx.QueryContext(ctx, "SELECT 1")
		want(t, err, target)
		_, err = tx.PrepareContext(ctx, "SELECT 1")
		want(t, err, target)
		want(t, tx.QueryRowContext(ctx, "SELECT 1").Scan(), target)
		want(t, tx.Raw(func(any) error { return nil }), target)
		_, err = tx.StmtContext(ctx, stmt).Exec()
		want(t, err, target)
	}
}

func TestRawIsTheDriversConnectionInTheSameTransaction(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := (&oncemill.Inbox{DB: f.open("pgx", f.url)}).Consumer("test")
	raw := func(query string) func(ctx context.Context, tx oncemill.Tx) error {
		return func(ctx context.Context, tx oncemill.Tx) error {
			return tx.Raw(func(driverConn any) error {
				_, err := driverConn.(*stdlib.Conn).Conn().Exec(ctx, query)
				return err
			})
		}
	}
	must(t, c.Once(within(t), "k", raw(`INSERT INTO effects VALUES ('native')`)))
	f.wantEffects("native", 1)
	failure := errors.New("no")
	want(t, c.Once(within(t), "k2", func(ctx context.Context, tx oncemill.Tx) error {
		must(t, raw(`INSERT INTO effects VALUES ('native')`)(ctx, tx))
		return failure
	}), failure)
	f.wantEffects("native", 1)
	want(t, c.Once(within(t), "k3", raw(`COMMIT`)), oncemill.ErrTxControl)
	want(t, c.Once(within(t), "k4", raw(`COMMIT; BEGIN; INSERT INTO effects VALUES ('other')`)), oncemill.ErrTxControl)
	f.wantEffects("other", 0)
}

func TestPgxAsTheDriver(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	db := f.open("pgx", f.url)
	c := (&oncemill.Inbox{DB: db, LockWait: 50 * time.Millisecond}).Consumer("test")
	opts := oncemill.ClaimOptions{Fingerprint: []byte("f"), Origin: time.Now().Add(-time.Hour)}
	must(t, c.OnceWith(within(t), "k", opts, effect("a")))
	must(t, c.OnceWith(within(t), "k", opts, effect("a")))
	f.wantEffects("a", 1)
	must(t, f.consumer().Once(within(t), "k2", func(ctx context.Context, tx oncemill.Tx) error {
		want(t, c.Once(within(t), "k2", effect("a")), oncemill.ErrInFlight)
		return nil
	}))
	n, err := c.CountError(within(t), "k3", errors.New("no"))
	if n != 1 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
}

func TestAStatementPreparedOnTheDBWorksInATx(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	stmt, err := f.db.Prepare(`INSERT INTO effects VALUES ($1)`)
	must(t, err)
	defer stmt.Close()
	failure := errors.New("no")
	for i, result := range []error{failure, nil} {
		err := f.consumer().Once(within(t), fmt.Sprint(i), func(ctx context.Context, tx oncemill.Tx) error {
			_, err := tx.StmtContext(ctx, stmt).ExecContext(ctx, "a")
			must(t, err)
			return result
		})
		want(t, err, result)
	}
	f.wantEffects("a", 1)
}

func TestContextWithTxIsForUnitTests(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	sqlTx, err := f.db.Begin()
	must(t, err)
	defer sqlTx.Rollback() //nolint:errcheck // the test's own end
	ctx := oncemill.ContextWithTx(within(t), sqlTx)
	tx, ok := oncemill.TxFromContext(ctx)
	if !ok {
		t.Fatal("no transaction in the context")
	}
	must(t, effect("a")(ctx, tx))
	f.wantEffects("a", 0) // from outside
	_, err = tx.ExecContext(ctx, "COMMIT")
	want(t, err, oncemill.ErrTxControl)
	wantText(t, tx.Raw(func(any) error { return nil }), "ContextWithTx")
	if _, ok := oncemill.TxFromContext(within(t)); ok {
		t.Error("found a transaction where there is none")
	}
}

func TestAHandlerMayFinishWhenItsContextIsCancelled(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := f.consumer()
	ctx, cancel := context.WithCancel(within(t))
	must(t, c.Once(ctx, "k", func(ctx context.Context, tx oncemill.Tx) error {
		cancel()
		return effect("a")(ctx, tx)
	}))
	f.wantEffects("a", 1)
	want(t, c.Once(ctx, "k2", effect("a")), context.Canceled) // has not begun: does not begin
	f.wantEffects("a", 1)
}

func TestAHandlerIsStoppedAtTheDrainTimeout(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := (&oncemill.Inbox{DB: f.db, DrainTimeout: 50 * time.Millisecond}).Consumer("test")
	ctx, cancel := context.WithCancel(within(t))
	err := c.Once(ctx, "k", func(ctx context.Context, tx oncemill.Tx) error {
		must(t, effect("a")(ctx, tx))
		cancel()
		<-ctx.Done()
		return ctx.Err()
	})
	want(t, err, oncemill.ErrDrained)
	if oncemill.IsHandlerError(err) {
		t.Errorf("%v must not count towards a dead letter", err)
	}
	f.wantEffects("a", 0)
	must(t, f.consumer().Once(within(t), "k", effect("a")))
	f.wantEffects("a", 1)
}

func TestADeadlineStopsAHandlerAtOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx, cancel := context.WithTimeout(within(t), 100*time.Millisecond)
	defer cancel()
	err := f.consumer().Once(ctx, "k", func(ctx context.Context, tx oncemill.Tx) error {
		must(t, effect("a")(ctx, tx))
		<-ctx.Done()
		return ctx.Err()
	})
	want(t, err, context.DeadlineExceeded)
	f.wantEffects("a", 0)
}

func TestAPoolOfOneIsEnough(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.db.SetMaxOpenConns(1)
	c := f.consumer()
	var wg sync.WaitGroup
	var failed atomic.Int32
	for i := range 20 {
		wg.Go(func() {
			if c.Once(within(t), fmt.Sprint(i%10), effect("a")) != nil {
				failed.Add(1)
			}
		})
	}
	wg.Wait()
	if failed.Load() > 0 {
		t.Errorf("%d calls failed", failed.Load())
	}
	f.wantEffects("a", 10)
}

func TestHandlerErrorsAreCountedOutsideOfTheTransaction(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for i, c := range []*oncemill.Consumer{f.consumer(), f.consumer(), f.consumer()} {
		n, err := c.CountError(within(t), "k\x00", errors.New("bad \x00\xff"))
		must(t, err)
		if n != i+1 {
			t.Errorf("got %d, want %d", n, i+1)
		}
	}
	c := f.consumer()
	must(t, c.Once(within(t), "k\x00", func(ctx context.Context, tx oncemill.Tx) error {
		return c.GiveUp(ctx, tx, "k\x00", "why")
	}))
	n, err := c.CountError(within(t), "k\x00", errors.New("too late"))
	if n != 0 || err != nil {
		t.Errorf("a message that is settled counts %d, %v", n, err)
	}
	if n := f.count(`SELECT count(*) FROM oncemill.handler_errors`); n != 0 {
		t.Errorf("%d left", n)
	}
}

func TestWrongConfigurationPanicsAtWiring(t *testing.T) {
	t.Parallel()
	db := new(sql.DB)
	for name, wire := range map[string]func(){
		"Inbox.DB is nil":    func() { (&oncemill.Inbox{}).Consumer("c") },
		"Inbox.LockWait":     func() { (&oncemill.Inbox{DB: db, LockWait: -1}).Consumer("c") },
		"Inbox.IdleTimeout":  func() { (&oncemill.Inbox{DB: db, IdleTimeout: -1}).Consumer("c") },
		"Inbox.DrainTimeout": func() { (&oncemill.Inbox{DB: db, DrainTimeout: -1}).Consumer("c") },
		"Inbox.Retention":    func() { (&oncemill.Inbox{DB: db, Retention: time.Minute}).Consumer("c") },
		"consumer name":      func() { (&oncemill.Inbox{DB: db}).Consumer("") },
	} {
		func() {
			defer func() {
				if said := fmt.Sprint(recover()); !strings.Contains(said, name) {
					t.Errorf("%s: got panic %s", name, said)
				}
			}()
			wire()
		}()
	}
}
