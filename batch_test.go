package oncemill_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
)

// batched is an Inbox whose next batch a test puts together.
type batched struct {
	*fixture
	in   *oncemill.Inbox
	c    *oncemill.Consumer
	open chan struct{} // ends the message that keeps the lane busy
	gate chan error    // what became of it
	ends []chan error  // of the others
}

// newBatched keeps the lane busy, with a message of its own.
func newBatched(f *fixture, in *oncemill.Inbox) *batched {
	if in.Batch == 0 {
		in.Batch = 100
	}
	if in.DB == nil {
		in.DB = f.db
	}
	b := &batched{fixture: f, in: in, c: in.Consumer("test")}
	for i := range 4 { // until the query of effect is known, and deferred from then on
		must(f.t, b.c.Once(within(f.t), fmt.Sprint("gate warm ", i), effect("warm")))
	}
	f.exec(`DELETE FROM effects`)
	oncemill.Grow(in)
	b.shut()
	return b
}

func (b *batched) shut() {
	b.t.Helper()
	b.open, b.gate, b.ends = make(chan struct{}), make(chan error, 1), nil
	begun, open := make(chan struct{}), b.open
	go func() {
		b.gate <- b.c.Once(within(b.t), fmt.Sprintf("gate %p", open), func(context.Context, oncemill.Tx) error {
			close(begun)
			<-open
			return nil
		})
	}()
	<-begun
}

// add has a message wait for the next batch, behind those that were added before.
func (b *batched) add(ctx context.Context, key string, opts oncemill.ClaimOptions, fn func(context.Context, oncemill.Tx) error) {
	b.t.Helper()
	end := make(chan error, 1)
	n := oncemill.Waiting(b.in)
	go func() {
		defer func() {
			if panicked := recover(); panicked != nil {
				end <- fmt.Errorf("panic: %v", panicked)
			}
		}()
		end <- b.c.OnceWith(ctx, key, opts, fn)
	}()
	b.ends = append(b.ends, end)
	for oncemill.Waiting(b.in) == n && len(end) == 0 {
		must(b.t, ctx.Err())
		time.Sleep(time.Millisecond)
	}
}

func (b *batched) effects(names ...string) {
	b.t.Helper()
	for _, name := range names {
		b.add(within(b.t), name, oncemill.ClaimOptions{}, effect(name))
	}
}

// run lets the batch begin, and returns what has become of its messages.
func (b *batched) run() (errs []error) {
	b.t.Helper()
	close(b.open)
	must(b.t, <-b.gate)
	for _, end := range b.ends {
		errs = append(errs, <-end)
	}
	return errs
}

// wantOneEach checks that each message has its claim and its effect, once.
func (b *batched) wantOneEach(names ...string) {
	b.t.Helper()
	for _, name := range names {
		b.wantEffects(name, 1)
		if n := b.count(`SELECT count(*) FROM oncemill.claims WHERE key = $1`, name); n != 1 {
			b.t.Errorf("%q has %d claims, want 1", name, n)
		}
	}
}

// wantNone checks that messages have left nothing.
func (b *batched) wantNone(names ...string) {
	b.t.Helper()
	for _, name := range names {
		b.wantEffects(name, 0)
		if n := b.count(`SELECT count(*) FROM oncemill.claims WHERE key = $1`, name); n != 0 {
			b.t.Errorf("%q has %d claims, want none", name, n)
		}
	}
}

func TestABatchIsOneTransaction(t *testing.T) {
	t.Parallel()
	for _, driver := range []string{"postgres", "pgx"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			var committed, messages atomic.Int64
			b := newBatched(f, &oncemill.Inbox{DB: f.open(driver, f.url), Observer: &oncemill.Observer{
				Batch: func(n, of int, _ time.Duration) { committed.Store(int64(n)); messages.Store(int64(of)) },
			}})
			names := []string{"c", "a", "b \x00\xff\"\\", "d"}
			for _, name := range names {
				b.add(within(t), name, oncemill.ClaimOptions{Fingerprint: []byte(name)}, effect(fmt.Sprintf("%q", name)))
			}
			must(t, errors.Join(b.run()...))
			for _, name := range names {
				f.wantEffects(fmt.Sprintf("%q", name), 1)
				must(t, b.c.OnceWith(within(t), name, oncemill.ClaimOptions{Fingerprint: []byte(name)}, effect("again")))
			}
			f.wantEffects("again", 0)
			if n := f.count(`SELECT count(DISTINCT xmin::text) FROM oncemill.claims WHERE key NOT LIKE 'gate%'`); n != 1 {
				t.Errorf("%d transactions, want 1", n)
			}
			if n := f.count(`SELECT count(DISTINCT xmin::text) FROM effects`); n != 1 {
				t.Errorf("%d transactions of effects, want 1", n)
			}
		})
	}
}

// Nothing is waited for: a message that comes alone runs alone.
func TestASingleMessageDoesNotWaitForABatch(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var batches []string
	in := &oncemill.Inbox{DB: f.db, Batch: 100, BatchTime: time.Hour, Observer: &oncemill.Observer{
		Batch: func(n, of int, _ time.Duration) { batches = append(batches, fmt.Sprintf("%d/%d", n, of)) },
	}}
	for i := range 3 {
		must(t, in.Consumer("test").Once(within(t), fmt.Sprint(i), effect("a")))
	}
	f.wantEffects("a", 3)
}

// Whoever routes messages by the rows that they change can have several lanes.
func TestAnotherInboxIsAnotherLane(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	b := newBatched(f, &oncemill.Inbox{}) // its lane is busy
	other := (&oncemill.Inbox{DB: f.db, Batch: 100}).Consumer("other")
	must(t, other.Once(within(t), "k", effect("a")))
	f.wantEffects("a", 1)
	must(t, closeAndWait(b))
}

func TestDuplicatesInAndAcrossBatches(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var duplicates atomic.Int64
	b := newBatched(f, &oncemill.Inbox{Observer: &oncemill.Observer{
		Duplicate: func(context.Context, string, string) { duplicates.Add(1) },
	}})
	must(t, f.consumer().Once(within(t), "earlier", effect("earlier")))
	b.effects("a", "earlier", "b")
	again := make(chan error, 1)
	go func() { again <- b.c.Once(within(t), "a", effect("a")) }() // while it is in the batch
	must(t, errors.Join(b.run()...))
	must(t, <-again)
	b.wantOneEach("earlier", "a", "b")
	if n := duplicates.Load(); n != 2 {
		t.Errorf("%d duplicates, want 2", n)
	}
}

// What one message does wrong, the others do not feel.
func TestAFailedMemberRunsAloneAndTheOthersTogether(t *testing.T) {
	t.Parallel()
	failure := errors.New("no")
	for name, wrong := range map[string]func(context.Context, oncemill.Tx) error{
		"error": func(context.Context, oncemill.Tx) error { return failure },
		"panic": func(context.Context, oncemill.Tx) error { panic("boom") },
		"abort": func(ctx context.Context, tx oncemill.Tx) error {
			_, err := tx.ExecContext(ctx, `SELECT 1/0`)
			return err
		},
		"swallowed abort": func(ctx context.Context, tx oncemill.Tx) error {
			_, _ = tx.ExecContext(ctx, `SELECT 1/0`)
			return nil
		},
		"unseen abort": func(ctx context.Context, tx oncemill.Tx) error {
			stmt, err := tx.PrepareContext(ctx, `SELECT 1/$1::int`)
			if err == nil {
				_, _ = stmt.ExecContext(ctx, 0)
			}
			return err
		},
		"commit": func(ctx context.Context, tx oncemill.Tx) error {
			_, _ = tx.ExecContext(ctx, `COMMIT`)
			return nil
		},
		"open rows": func(ctx context.Context, tx oncemill.Tx) error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			_, err := tx.QueryContext(ctx, `SELECT generate_series(1, 100000)`) //nolint:sqlclosecheck,rowserrcheck // on purpose
			return err
		},
		"timeout": func(ctx context.Context, tx oncemill.Tx) error {
			ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
			defer cancel()
			_, err := tx.ExecContext(ctx, `SELECT pg_sleep(5)`) // should the request to cancel it come too early
			return err
		},
		"deferred constraint": func(ctx context.Context, tx oncemill.Tx) error {
			_, err := tx.ExecContext(ctx, `INSERT INTO twice VALUES (1)`)
			return err
		},
	} {
		for position := range 3 {
			t.Run(fmt.Sprintf("%s at %d", name, position), func(t *testing.T) {
				t.Parallel()
				f := newFixture(t)
				f.exec(`CREATE TABLE twice (n int, UNIQUE (n) DEFERRABLE INITIALLY DEFERRED)`)
				f.exec(`INSERT INTO twice VALUES (1)`)
				b := newBatched(f, &oncemill.Inbox{})
				for i := range 3 {
					if i == position {
						b.add(within(t), "wrong", oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) error {
							must(t, effect("wrong")(ctx, tx))
							return wrong(ctx, tx)
						})
					} else {
						b.effects(fmt.Sprint("right ", i))
					}
				}
				for i, err := range b.run() {
					switch {
					case i != position && err != nil:
						t.Errorf("message %d: %v", i, err)
					case i == position && err == nil:
						t.Error("the wrong one has no error")
					case i == position && errors.Is(err, oncemill.ErrUnavailable):
						t.Errorf("the wrong one is not the database's fault: %v", err)
					}
				}
				b.wantNone("wrong")
				for i := range 3 {
					if i != position {
						b.wantOneEach(fmt.Sprint("right ", i))
					}
				}
			})
		}
	}
}

// A message that has failed is no risk for a batch again until it has succeeded.
func TestAKeyThatFailedRunsAloneFromThenOn(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	b := newBatched(f, &oncemill.Inbox{})
	var runs atomic.Int64
	failing := func(ctx context.Context, tx oncemill.Tx) error {
		runs.Add(1)
		return errors.New("no")
	}
	b.effects("a")
	b.add(within(t), "k", oncemill.ClaimOptions{}, failing)
	if errs := b.run(); errs[0] != nil || errs[1] == nil {
		t.Fatal(errs)
	}
	if n := runs.Load(); n != 2 { // in the batch, and alone
		t.Errorf("ran %d times, want 2", n)
	}
	b.shut() // the lane is busy: only a message that runs alone passes
	if err := b.c.Once(within(t), "k", failing); err == nil {
		t.Fatal("no error")
	}
	must(t, b.c.Once(within(t), "k", effect("k")))
	if n := runs.Load(); n != 3 {
		t.Errorf("ran %d times, want 3", n)
	}
	must(t, errors.Join(b.run()...))
	b.wantOneEach("a", "k")
}

// A batch that takes too long ends early, without the claims of those who have not run.
func TestClaimsOfMembersThatDidNotRunAreNotCommitted(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var sizes []string
	var mu sync.Mutex
	b := newBatched(f, &oncemill.Inbox{BatchTime: time.Millisecond, Observer: &oncemill.Observer{
		Batch: func(n, of int, _ time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			sizes = append(sizes, fmt.Sprintf("%d/%d", n, of))
		},
	}})
	slow := func(name string) func(context.Context, oncemill.Tx) error {
		return func(ctx context.Context, tx oncemill.Tx) error {
			time.Sleep(5 * time.Millisecond)
			return effect(name)(ctx, tx)
		}
	}
	for _, name := range []string{"a", "b", "c"} {
		b.add(within(t), name, oncemill.ClaimOptions{}, slow(name))
	}
	must(t, errors.Join(b.run()...))
	b.wantOneEach("a", "b", "c")
	mu.Lock()
	defer mu.Unlock()
	if n := slices.Index(sizes, "1/3"); n < 0 || len(sizes) < n+2 {
		t.Errorf("batches were %v, want one of 1/3", sizes)
	}
}

// Who leaves before its turn gets its answer at once, and leaves nothing.
func TestAMemberThatLeavesBeforeItsTurn(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	b := newBatched(f, &oncemill.Inbox{})
	ctx, cancel := context.WithCancel(within(t))
	gone := make(chan struct{})
	b.add(within(t), "a", oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) error {
		cancel()
		<-gone
		return effect("a")(ctx, tx)
	})
	b.add(ctx, "b", oncemill.ClaimOptions{}, effect("b"))
	b.effects("c")
	go func() {
		want(t, <-b.ends[1], context.Canceled) // while a runs
		b.ends[1] <- nil
		close(gone)
	}()
	must(t, errors.Join(b.run()...))
	b.wantOneEach("a", "c")
	b.wantNone("b")
	must(t, b.c.Once(within(t), "b", effect("b")))
	b.wantOneEach("b")
}

// A router that closes cancels all messages at once. What has begun is finished.
func TestARouterThatClosesInMidBatch(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	b := newBatched(f, &oncemill.Inbox{})
	ctx, cancel := context.WithCancel(within(t))
	b.add(ctx, "a", oncemill.ClaimOptions{}, effect("a"))
	b.add(ctx, "b", oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) error {
		cancel()
		must(t, ctx.Err())
		return effect("b")(ctx, tx)
	})
	b.add(ctx, "c", oncemill.ClaimOptions{}, effect("c"))
	b.add(ctx, "d", oncemill.ClaimOptions{}, effect("d"))
	errs := b.run()
	must(t, errors.Join(errs[:2]...))
	want(t, errs[2], context.Canceled)
	want(t, errs[3], context.Canceled)
	b.wantOneEach("a", "b")
	b.wantNone("c", "d")
}

func TestALostConnectionFailsAllMembersAtOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	b := newBatched(f, &oncemill.Inbox{})
	var runs atomic.Int64
	b.effects("a")
	b.add(within(t), "b", oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) error {
		runs.Add(1)
		var pid int
		must(t, tx.QueryRowContext(ctx, `SELECT pg_backend_pid()`).Scan(&pid))
		f.exec(`SELECT pg_terminate_backend($1, 10000)`, pid)
		return effect("b")(ctx, tx)
	})
	b.effects("c")
	for _, err := range b.run() {
		want(t, err, oncemill.ErrUnavailable)
		if oncemill.IsHandlerError(err) {
			t.Errorf("%v must not count towards a dead letter", err)
		}
	}
	if runs.Load() != 1 {
		t.Errorf("ran %d times, want 1", runs.Load())
	}
	b.wantNone("a", "b", "c")
}

// A key that another process is handling is waited for by its own message alone.
func TestAKeyInFlightElsewhereDoesNotHoldUpABatch(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	tx, err := f.db.Begin()
	must(t, err)
	defer tx.Rollback()
	_, err = tx.Exec(`INSERT INTO oncemill.claims (consumer, key) VALUES ('test', 'b')`)
	must(t, err)
	b := newBatched(f, &oncemill.Inbox{LockWait: 100 * time.Millisecond})
	b.effects("a", "b", "c")
	errs := b.run()
	must(t, errors.Join(errs[0], errs[2]))
	want(t, errs[1], oncemill.ErrInFlight)
	b.wantOneEach("a", "c")
	must(t, tx.Rollback())
	must(t, b.c.Once(within(t), "b", effect("b")))
	b.wantOneEach("b")
}

func TestAReusedKeyAndAnOldMessageInABatch(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	b := newBatched(f, &oncemill.Inbox{})
	must(t, b.in.DB.Ping())
	must(t, f.consumer().OnceWith(within(t), "reused", oncemill.ClaimOptions{Fingerprint: []byte("1")}, effect("reused")))
	f.exec(`INSERT INTO oncemill.watermarks VALUES ('test', now() - interval '1 hour')`)
	b.effects("a")
	b.add(within(t), "reused", oncemill.ClaimOptions{Fingerprint: []byte("2")}, effect("reused"))
	b.add(within(t), "old", oncemill.ClaimOptions{Origin: time.Now().Add(-2 * time.Hour)}, effect("old"))
	b.add(within(t), "not so old", oncemill.ClaimOptions{Origin: time.Now().Add(-30 * time.Minute)}, effect("not so old"))
	b.effects("b")
	errs := b.run()
	must(t, errors.Join(errs[0], errs[3], errs[4]))
	want(t, errs[1], oncemill.ErrKeyReused)
	want(t, errs[2], oncemill.ErrTooOld)
	b.wantOneEach("a", "b", "reused", "not so old")
	b.wantNone("old")
}

// A handler that hangs loses its transaction, as it would alone, and the others go on.
func TestAMemberThatHangsDoesNotHoldUpTheOthers(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	b := newBatched(f, &oncemill.Inbox{IdleTimeout: 100 * time.Millisecond})
	hang := make(chan struct{})
	var late error
	b.effects("a")
	b.add(within(t), "b", oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) error {
		must(t, effect("b")(ctx, tx))
		<-hang
		late = effect("b")(ctx, tx)
		return nil
	})
	b.effects("c")
	close(b.open)
	must(t, errors.Join(<-b.ends[0], <-b.ends[2]))
	close(hang)
	err := <-b.ends[1]
	want(t, err, oncemill.ErrIdle)
	want(t, late, oncemill.ErrTxEnded)
	b.wantOneEach("a", "c")
	b.wantNone("b")
}

// What would reach into the turns of others, no batch allows: such handlers run alone.
func TestWhatReachesOthersRunsAlone(t *testing.T) {
	t.Parallel()
	exec := func(queries ...string) func(context.Context, oncemill.Tx) error {
		return func(ctx context.Context, tx oncemill.Tx) error {
			for _, query := range queries {
				if _, err := tx.ExecContext(ctx, query); err != nil && !strings.Contains(query, "1/0") {
					return err
				}
			}
			return effect("b")(ctx, tx)
		}
	}
	for name, reaching := range map[string]func(context.Context, oncemill.Tx) error{
		"Raw": func(ctx context.Context, tx oncemill.Tx) error {
			if err := tx.Raw(func(any) error { return nil }); err != nil {
				return err
			}
			return effect("b")(ctx, tx)
		},
		"savepoint":   exec(`SAVEPOINT s; INSERT INTO effects VALUES ('no')`, `SELECT 1/0`, `ROLLBACK TO SAVEPOINT s`),
		"SET LOCAL":   exec(`/* tenant */ SET LOCAL app.tenant = '7'`),
		"set_config":  exec(`SELECT pg_catalog.Set_Config('app.tenant', '7', true)`),
		"constraints": exec(`SELECT 1; SET CONSTRAINTS ALL IMMEDIATE`),
		"temporary":   exec(`CREATE TEMP TABLE t (n int) ON COMMIT DROP`),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			b := newBatched(f, &oncemill.Inbox{})
			b.effects("a")
			b.add(within(t), "b", oncemill.ClaimOptions{}, reaching)
			b.add(within(t), "c", oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) error {
				var tenant sql.NullString
				if err := tx.QueryRowContext(ctx, `SELECT current_setting('app.tenant', true)`).Scan(&tenant); err != nil {
					return err
				}
				if tenant.String != "" {
					t.Errorf("c runs as tenant %q of another message", tenant.String)
				}
				return effect("c")(ctx, tx)
			})
			must(t, errors.Join(b.run()...))
			b.wantOneEach("a", "b", "c")
			b.wantNone("no")
			b.shut()
			must(t, b.c.Once(within(t), "d", effect("d"))) // though the lane is busy
			must(t, errors.Join(b.run()...))
		})
	}
}

// What a handler leaves open, COMMIT would close, and does not trouble the next one.
func TestWhatAHandlerLeavesOpenIsClosed(t *testing.T) {
	t.Parallel()
	for _, driver := range []string{"postgres", "pgx"} {
		for name, leaving := range map[string]func(context.Context, oncemill.Tx) error{
			"rows": func(ctx context.Context, tx oncemill.Tx) error {
				_, err := tx.QueryContext(ctx, `SELECT generate_series(1, 1000)`) //nolint:sqlclosecheck,rowserrcheck // on purpose
				return err
			},
			"row": func(ctx context.Context, tx oncemill.Tx) error {
				return tx.QueryRowContext(ctx, `SELECT generate_series(1, 1000)`).Err()
			},
		} {
			t.Run(driver+" "+name, func(t *testing.T) {
				t.Parallel()
				f := newFixture(t)
				var batches atomic.Int64
				b := newBatched(f, &oncemill.Inbox{DB: f.open(driver, f.url), Observer: &oncemill.Observer{
					Batch: func(int, int, time.Duration) { batches.Add(1) },
				}})
				b.add(within(t), "a", oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) error {
					return errors.Join(effect("a")(ctx, tx), leaving(ctx, tx))
				})
				b.effects("b")
				must(t, errors.Join(b.run()...))
				b.wantOneEach("a", "b")
				if n := f.count(`SELECT count(DISTINCT xmin::text) FROM effects`); n != 1 {
					t.Errorf("%d transactions, want 1", n)
				}
			})
		}
	}
}

// A statement of one message's turn is of no use in another's.
func TestAStatementEndsWithItsTurn(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	b := newBatched(f, &oncemill.Inbox{})
	insert, err := f.db.Prepare(`INSERT INTO effects VALUES ($1)`)
	must(t, err)
	defer insert.Close()
	var kept []*sql.Stmt
	b.add(within(t), "a", oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) error {
		own, err := tx.PrepareContext(ctx, `INSERT INTO effects VALUES ($1)`)
		kept = append(kept, own, tx.StmtContext(ctx, insert))
		return errors.Join(err, effect("a")(ctx, tx))
	})
	b.add(within(t), "b", oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) error {
		for _, stmt := range kept {
			if _, err := stmt.ExecContext(ctx, "leaked"); err == nil {
				t.Error("a statement of another message's turn was run")
			}
		}
		return effect("b")(ctx, tx)
	})
	must(t, errors.Join(b.run()...))
	b.wantOneEach("a", "b")
	b.wantNone("leaked")
}

// A batch updates many rows, in any order. Those of two processes get into a deadlock,
// and take turns from then on.
func TestBatchesThatDeadlockTakeTurns(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.exec(`CREATE TABLE hot (id int PRIMARY KEY, n int NOT NULL DEFAULT 0)`)
	f.exec(`INSERT INTO hot SELECT generate_series(0, 9)`)
	var wg sync.WaitGroup
	for process := range 2 {
		c := (&oncemill.Inbox{DB: f.open("postgres", f.url), Batch: 20}).Consumer("test")
		for i := range 200 {
			wg.Go(func() {
				err := c.Once(within(t), fmt.Sprint(process, i), func(ctx context.Context, tx oncemill.Tx) error {
					for _, id := range []int{(i*7 + process*3) % 10, (i*3 + process) % 10} {
						if _, err := tx.ExecContext(ctx, `UPDATE hot SET n = n + 1 WHERE id = $1`, id); err != nil {
							return err
						}
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	if n := f.count(`SELECT sum(n) FROM hot`); n != 2*2*200 {
		t.Errorf("%d updates, want %d", n, 2*2*200)
	}
}

// Where another transaction has a row for long, a batch does not give up its message.
func TestABatchWaitsForARow(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	b := newBatched(f, &oncemill.Inbox{})
	update := func(ctx context.Context, tx oncemill.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE hot SET n = n + 1 WHERE id = $1`, 1)
		return err
	}
	f.exec(`CREATE TABLE hot (id int PRIMARY KEY, n int NOT NULL); INSERT INTO hot VALUES (1, 0)`)
	must(t, closeAndWait(b))
	for i := range 4 { // until it is deferred
		must(t, b.c.Once(within(t), fmt.Sprint("gate ", i), update))
	}
	b.shut()
	tx, err := f.db.Begin()
	must(t, err)
	defer tx.Rollback()
	_, err = tx.Exec(`UPDATE hot SET n = 0`)
	must(t, err)
	b.effects("a")
	var runs atomic.Int64
	b.add(within(t), "b", oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) error {
		runs.Add(1)
		return update(ctx, tx)
	})
	b.effects("c")
	close(b.open)
	must(t, <-b.gate)
	for runs.Load() < 2 { // it was rolled back once
		time.Sleep(time.Millisecond)
	}
	must(t, tx.Commit())
	for _, end := range b.ends {
		must(t, <-end)
	}
	if n := f.count(`SELECT n FROM hot`); n != 1 {
		t.Errorf("%d updates, want 1", n)
	}
	b.wantOneEach("a", "c")
}

// Failures make batches smaller, and successes larger again.
func TestTheSizeOfBatchesAdapts(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var mu sync.Mutex
	var sizes []int
	in := &oncemill.Inbox{DB: f.db, Batch: 64, Observer: &oncemill.Observer{
		Batch: func(_, of int, _ time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			sizes = append(sizes, of)
		},
	}}
	b := newBatched(f, in)
	for i := range 64 {
		b.add(within(t), fmt.Sprint(i), oncemill.ClaimOptions{}, func(context.Context, oncemill.Tx) error {
			if i%16 == 15 {
				return errors.New("no")
			}
			return nil
		})
	}
	b.run()
	mu.Lock()
	if i := slices.Index(sizes, 64); i < 0 || sizes[i+1] != 32 {
		t.Errorf("sizes were %v, want 64 and then 32", sizes)
	}
	sizes = nil
	mu.Unlock()
	for range 12 {
		b.shut()
		for i := range 70 {
			b.add(within(t), fmt.Sprint(b.open, i), oncemill.ClaimOptions{}, effect("a"))
		}
		must(t, errors.Join(b.run()...))
	}
	mu.Lock()
	defer mu.Unlock()
	largest := 0
	for _, size := range sizes {
		largest = max(largest, size)
	}
	if largest != 64 {
		t.Errorf("sizes grew to %d, want 64", largest)
	}
}

func TestAnInboxThatCannotBatchIsRefused(t *testing.T) {
	t.Parallel()
	for name, in := range map[string]*oncemill.Inbox{
		"Inbox.Batch is -1":       {Batch: -1},
		"Inbox.Batch is 10001":    {Batch: 10001},
		"Inbox.BatchTime is -1ns": {BatchTime: -1},
	} {
		in.DB = new(sql.DB)
		wantText(t, in.Check(within(t)), name)
	}
}
