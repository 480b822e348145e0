package oncemill_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/testenv"
)

// newDeferring is newBatched, with statements that were run so often that they are deferred.
func newDeferring(f *fixture, in *oncemill.Inbox, queries ...string) *batched {
	f.t.Helper()
	b := newBatched(f, in)
	must(f.t, errors.Join(b.run()...))
	for i := range 5 {
		must(f.t, b.c.Once(within(f.t), fmt.Sprint("often ", i), func(ctx context.Context, tx oncemill.Tx) error {
			for _, query := range queries {
				if _, err := tx.ExecContext(ctx, query, fmt.Sprint("often ", i)); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	b.shut()
	return b
}

const insertUnique = `INSERT INTO uniques VALUES ($1)`

func inserts(query, name string) func(context.Context, oncemill.Tx) error {
	return func(ctx context.Context, tx oncemill.Tx) error {
		_, err := tx.ExecContext(ctx, query, name)
		return err
	}
}

// Whatever a handler makes of an error that is another one's, that one is to blame.
func TestADeferredErrorThatAnotherHandlerHides(t *testing.T) {
	t.Parallel()
	for name, hide := range map[string]func(error) error{
		"another error": func(error) error { return errors.New("cannot read") },
		"none":          func(error) error { return nil },
		"panic":         func(err error) error { panic(err) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			f.exec(`CREATE TABLE uniques (name text UNIQUE)`)
			f.exec(`INSERT INTO uniques VALUES ('a')`)
			b := newDeferring(f, &oncemill.Inbox{}, insertUnique)
			b.add(within(t), "a", oncemill.ClaimOptions{}, inserts(insertUnique, "a"))
			b.add(within(t), "b", oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) error {
				var n int
				if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM effects`).Scan(&n); err != nil {
					return hide(err)
				}
				return effect("b")(ctx, tx)
			})
			b.effects("c")
			errs := b.run()
			if !oncemill.IsHandlerError(errs[0]) {
				t.Errorf("got %v, want the violated constraint", errs[0])
			}
			must(t, errors.Join(errs[1:]...))
			b.wantOneEach("b", "c")
		})
	}
}

// Who waits for others' statements until its time is over does not fail them.
func TestATimeoutBehindDeferredStatements(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"message's", "query's"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			f.exec(`CREATE TABLE uniques (name text UNIQUE)`)
			b := newDeferring(f, &oncemill.Inbox{}, insertUnique)
			tx, err := f.db.Begin()
			must(t, err)
			defer tx.Rollback()
			_, err = tx.Exec(`INSERT INTO uniques VALUES ('a')`)
			must(t, err)
			begun := make(chan struct{}, 10)
			ctx, cancel := context.WithCancel(within(t))
			defer cancel()
			if name == "message's" {
				ctx = &deadline{Context: ctx}
			}
			b.add(within(t), "a", oncemill.ClaimOptions{}, inserts(insertUnique, "a"))
			b.add(ctx, "b", oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) error {
				begun <- struct{}{}
				if name == "query's" {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, 100*time.Millisecond)
					defer cancel()
				}
				_, err := tx.ExecContext(ctx, `DELETE FROM effects WHERE false`)
				return err
			})
			b.effects("c")
			go func() {
				<-begun
				time.Sleep(200 * time.Millisecond)
				cancel()
				_ = tx.Rollback()
			}()
			errs := b.run()
			must(t, errors.Join(errs[0], errs[2]))
			b.wantOneEach("c")
		})
	}
}

// deadline is a context whose end is one of a deadline.
type deadline struct{ context.Context }

func (d *deadline) Err() error {
	if d.Context.Err() != nil {
		return context.DeadlineExceeded
	}
	return nil
}

// Postgres hears nothing of what is deferred, and does not end the transaction for that.
func TestDeferredStatementsDoNotIdle(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	const query = `INSERT INTO effects (name) VALUES ($1)`
	b := newDeferring(f, &oncemill.Inbox{IdleTimeout: 2 * time.Second, BatchTime: time.Minute}, query)
	b.effects("a")
	b.add(within(t), "b", oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) error {
		for range 4 { // it is idle for less than IdleTimeout
			time.Sleep(900 * time.Millisecond)
			if err := inserts(query, "pause")(ctx, tx); err != nil {
				return err
			}
		}
		return effect("b")(ctx, tx)
	})
	b.effects("c")
	must(t, errors.Join(b.run()...))
	b.wantOneEach("a", "b", "c")
}

// One that pauses has all of IdleTimeout for that, also where it follows one that has written.
func TestAPauseBehindDeferredStatements(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	b := newDeferring(f, &oncemill.Inbox{IdleTimeout: 2 * time.Second, BatchTime: time.Minute})
	pause := func(name string, d time.Duration) func(context.Context, oncemill.Tx) error {
		return func(ctx context.Context, tx oncemill.Tx) error {
			err := effect(name)(ctx, tx)
			time.Sleep(d)
			return err
		}
	}
	b.add(within(t), "a", oncemill.ClaimOptions{}, pause("a", 900*time.Millisecond))
	b.add(within(t), "b", oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) error {
		time.Sleep(1500 * time.Millisecond)
		return effect("b")(ctx, tx)
	})
	must(t, errors.Join(b.run()...))
	b.wantOneEach("a", "b")
	if n := b.count(`SELECT count(DISTINCT xmin::text) FROM effects WHERE name IN ('a', 'b')`); n != 1 {
		t.Errorf("%d transactions, want 1", n)
	}
}

// What a text has prepared that failed is not left in the pool.
func TestAFailedTextLeavesNothingPrepared(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "what a failed text has prepared stays in the session that the pooler keeps")
	f := newFixture(t)
	f.exec(`CREATE TABLE uniques (name text UNIQUE)`)
	db := f.open("postgres", f.url)
	db.SetMaxOpenConns(1)
	b := newDeferring(f, &oncemill.Inbox{DB: db}, insertUnique)
	f.exec(`INSERT INTO uniques VALUES ('a')`)
	b.add(within(t), "a", oncemill.ClaimOptions{}, inserts(insertUnique, "a"))
	b.effects("b")
	if errs := b.run(); !oncemill.IsHandlerError(errs[0]) || errs[1] != nil {
		t.Fatal(errs)
	}
	var n int
	must(t, db.QueryRow(`SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'oncemill%'`).Scan(&n))
	if n != 0 {
		t.Errorf("%d statements are left", n)
	}
}

// A handler that does not look whether it was told how many rows there were decides anew.
func TestRowsAffectedThatNobodyChecks(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	const update = `UPDATE effects SET name = name WHERE name = $1`
	b := newDeferring(f, &oncemill.Inbox{}, update)
	f.exec(`INSERT INTO effects VALUES ('there')`)
	b.add(within(t), "a", oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) error {
		result, err := tx.ExecContext(ctx, update, "there")
		if err != nil {
			return err
		}
		if n, _ := result.RowsAffected(); n == 0 {
			return effect("not there")(ctx, tx)
		}
		return effect("a")(ctx, tx)
	})
	b.effects("b")
	must(t, errors.Join(b.run()...))
	b.wantOneEach("a", "b")
	b.wantEffects("not there", 0)
}
