package oncemill_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
)

// A handler that waits for another message hangs, in a batch; not for ever.
func TestAHandlerThatWaitsForAnotherMessageRunsAlone(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := (&oncemill.Inbox{DB: f.db, Batch: 10, IdleTimeout: 2 * time.Second}).Consumer("test")
	outer := func(ctx context.Context, tx oncemill.Tx) error {
		if err := c.Once(within(t), "inner", effect("inner")); err != nil {
			return err
		}
		return effect("outer")(ctx, tx)
	}
	want(t, c.Once(within(t), "outer", outer), oncemill.ErrIdle)
	must(t, c.Once(within(t), "outer", outer))
	f.wantEffects("inner", 1)
	f.wantEffects("outer", 1)
}

// A message whose COMMIT is refused has failed too.
func TestAKeyWhoseCommitIsRefusedRunsAloneFromThenOn(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.exec(`CREATE TABLE twice (n int, UNIQUE (n) DEFERRABLE INITIALLY DEFERRED)`)
	f.exec(`INSERT INTO twice VALUES (1)`)
	b := newBatched(f, &oncemill.Inbox{})
	b.effects("a")
	b.add(within(t), "k", oncemill.ClaimOptions{}, execs(`INSERT INTO twice VALUES (1)`))
	if errs := b.run(); errs[0] != nil || errs[1] == nil {
		t.Fatal(errs)
	}
	b.shut() // the lane is busy: only a message that runs alone passes
	ctx, cancel := context.WithTimeout(within(t), 5*time.Second)
	defer cancel()
	err := b.c.Once(ctx, "k", execs(`INSERT INTO twice VALUES (1)`))
	if !oncemill.IsHandlerError(err) {
		t.Errorf("got %v, want the constraint", err)
	}
	must(t, errors.Join(b.run()...))
}

// A message that breaks the connection fails all others once, and not each time again.
func TestAMessageThatBreaksTheConnectionRunsAloneFromThenOn(t *testing.T) {
	t.Parallel()
	for name, wrong := range map[string]func(context.Context, oncemill.Tx) error{
		"terminates": execs(`SELECT pg_terminate_backend(pg_backend_pid())`),
		"idles": func(ctx context.Context, tx oncemill.Tx) error {
			time.Sleep(600 * time.Millisecond)
			return effect("wrong")(ctx, tx)
		},
		"goes on after a timeout": func(ctx context.Context, tx oncemill.Tx) error {
			short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
			defer cancel()
			_, _ = tx.ExecContext(short, `SELECT pg_sleep(60)`)
			return effect("wrong")(ctx, tx)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			both(t, func(t *testing.T, f *fixture, in *oncemill.Inbox) {
				in.IdleTimeout = 300 * time.Millisecond
				b := newBatched(f, in)
				batch := func() []error {
					b.effects("a")
					b.add(within(t), "wrong", oncemill.ClaimOptions{}, wrong)
					b.effects("c")
					return b.run()
				}
				batch()
				// While the lane is busy, only a message that runs alone passes.
				free, busy := make(chan error, 1), make(chan struct{})
				go func() {
					free <- b.c.Once(within(t), "long", func(ctx context.Context, tx oncemill.Tx) error {
						close(busy)
						return execs(`SELECT pg_sleep(2)`)(ctx, tx)
					})
				}()
				<-busy
				if err := b.c.Once(within(t), "wrong", wrong); err == nil {
					t.Error("no error")
				}
				if len(free) > 0 {
					t.Error("it did not run alone")
				}
				must(t, <-free)
				b.shut()
				b.effects("a", "c")
				must(t, errors.Join(b.run()...))
				b.wantOneEach("a", "c")
			})
		})
	}
}

// The time of a batch is that of its turns: what it has waited for before is no fault of
// its members.
func TestTheTimeOfABatchBeginsWithItsTurns(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	tx, err := f.db.Begin()
	must(t, err)
	defer tx.Rollback()
	_, err = tx.Exec(`INSERT INTO oncemill.claims (consumer, key) VALUES ('test', 'b')`)
	must(t, err)
	b := newBatched(f, &oncemill.Inbox{BatchTime: 200 * time.Millisecond})
	b.effects("a", "b", "c")
	time.AfterFunc(300*time.Millisecond, func() { _ = tx.Rollback() })
	must(t, errors.Join(b.run()...))
	b.wantOneEach("a", "b", "c")
	if n := b.count(`SELECT count(DISTINCT xmin::text) FROM effects`); n != 1 {
		t.Errorf("%d transactions, want 1", n)
	}
}

// What the claims table refuses of one message does not fail all others.
func TestAKeyThatCannotBeClaimedFailsAlone(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.exec(`ALTER TABLE oncemill.claims ADD CHECK (key <> 'wrong')`)
	b := newBatched(f, &oncemill.Inbox{})
	b.effects("a", "wrong", "c")
	errs := b.run()
	must(t, errors.Join(errs[0], errs[2]))
	if errs[1] == nil {
		t.Error("no error")
	}
	b.wantOneEach("a", "c")
}

// Once it is known that a consumer uses Raw, those that wait already do not go through
// batches, each for one to fail.
func TestThoseWhoWaitRunAloneTooAfterRaw(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var mu sync.Mutex
	batches := 0
	b := newBatched(f, &oncemill.Inbox{Observer: &oncemill.Observer{Batch: func(int, int, time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		batches++
	}}})
	mu.Lock()
	batches = 0
	mu.Unlock()
	for i := range 10 {
		b.add(within(t), fmt.Sprint(i), oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) error {
			return tx.Raw(func(any) error { return nil })
		})
	}
	must(t, errors.Join(b.run()...))
	mu.Lock()
	defer mu.Unlock()
	if batches > 3 {
		t.Errorf("%d batches, want 3 at most", batches)
	}
}

// A handler that ends its goroutine has no caller to be told anything; the others have.
func TestAMemberThatEndsItsGoroutine(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	b := newBatched(f, &oncemill.Inbox{})
	b.effects("a")
	b.add(within(t), "b", oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) error {
		_ = effect("b")(ctx, tx)
		runtime.Goexit()
		return nil
	})
	b.effects("c")
	close(b.open)
	must(t, <-b.gate)
	must(t, errors.Join(<-b.ends[0], <-b.ends[2]))
	b.wantOneEach("a", "c")
	b.wantNone("b")
	must(t, b.c.Once(within(t), "b", effect("b")))
	b.wantOneEach("b")
}

// A server that falls silent in a batch does not keep the lane longer than its callers
// wait, also where some were told their end before.
func TestASilentServerDoesNotKeepTheLane(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "answers come later through a pooler, and it would take them for lost")
	for name, first := range map[string]func(b *batched){
		"": func(b *batched) {},
		"duplicate": func(b *batched) {
			b.add(within(b.t), "earlier", oncemill.ClaimOptions{}, effect("earlier"))
		},
		"reused": func(b *batched) {
			b.add(within(b.t), "earlier", oncemill.ClaimOptions{Fingerprint: []byte("2")}, effect("earlier"))
		},
	} {
		for _, stage := range []string{"rollback", "commit"} {
			for _, driver := range []string{"postgres", "pgx"} {
				t.Run(strings.Join([]string{driver, stage, name}, " "), func(t *testing.T) {
					t.Parallel()
					f := newFixture(t)
					p, url := f.throughProxy()
					b := newBatched(f, &oncemill.Inbox{DB: f.open(driver, url), DrainTimeout: 50 * time.Millisecond})
					must(t, f.consumer().OnceWith(within(t), "earlier", oncemill.ClaimOptions{Fingerprint: []byte("1")}, effect("earlier")))
					first(b)
					ctx, cancel := context.WithCancel(within(t))
					b.add(ctx, "a", oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) error {
						must(t, effect("a")(ctx, tx))
						p.silent.Store(true)
						cancel()
						if stage == "rollback" {
							return errors.New("no")
						}
						return nil
					})
					errs := b.run()
					want(t, errs[len(errs)-1], oncemill.ErrDrained)
					p.silent.Store(false)
					ctx, cancel = context.WithTimeout(within(t), 5*time.Second)
					defer cancel()
					must(t, b.c.Once(ctx, "next", effect("next")))
				})
			}
		}
	}
}

// Two Inboxes on one connection, of which neither keeps it while it waits.
func TestBatchesOnOneConnection(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, f *fixture, in *oncemill.Inbox) {
		in.DB.SetMaxOpenConns(1)
		in.Batch = 7
		other := &oncemill.Inbox{DB: in.DB, Batch: 5}
		p := &outbox.Publisher{}
		var wg sync.WaitGroup
		for i := range 100 {
			c := []*oncemill.Consumer{in.Consumer("one"), in.Consumer("two"), other.Consumer("one"), other.Consumer("three")}[i%4]
			fails := i%11 == 10
			wg.Go(func() {
				var key string = fmt.Sprint(i)
				if i%10 == 0 {
					key += strings.Repeat("k", 1<<20)
				}
				err := c.OnceWith(within(t), key, oncemill.ClaimOptions{Fingerprint: []byte(key)}, func(ctx context.Context, tx oncemill.Tx) error {
					for range 4 {
						if err := effect(fmt.Sprint(i))(ctx, tx); err != nil {
							return err
						}
					}
					if err := p.Publish("topic", message.NewMessageWithContext(ctx, fmt.Sprint(i), nil)); err != nil {
						return err
					}
					if fails {
						return errors.New("no")
					}
					return nil
				})
				if fails != oncemill.IsHandlerError(err) {
					t.Errorf("%d: %v", i, err)
				}
			})
		}
		wg.Wait()
		for _, query := range []string{
			`SELECT count(*) FROM oncemill.claims`, `SELECT count(*) FROM oncemill.outbox`, `SELECT count(DISTINCT uuid) FROM oncemill.outbox`,
			`SELECT count(DISTINCT name) FROM effects`, `SELECT count(*) / 4 FROM effects`,
		} {
			if n := f.count(query); n != 91 {
				t.Errorf("%s: %d, want 91", query, n)
			}
		}
	})
}

// endsBehind is a context that has ended when a statement is over that began in it.
type endsBehind struct {
	context.Context
	asked atomic.Int64
}

func (e *endsBehind) Err() error {
	if e.asked.Add(1) > 1 {
		return context.DeadlineExceeded
	}
	return nil
}

// A statement may succeed in the moment in which its context ends, and the driver breaks
// the connection. That is its handler's doing, and the others do not feel it.
func TestAStatementThatSucceedsTooLate(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	b := newBatched(f, &oncemill.Inbox{})
	var runs atomic.Int64
	b.effects("a")
	b.add(within(t), "b", oncemill.ClaimOptions{}, func(ctx context.Context, tx oncemill.Tx) error {
		if runs.Add(1) > 1 {
			return effect("b")(ctx, tx)
		}
		var pid int
		must(t, tx.QueryRowContext(ctx, `SELECT pg_backend_pid()`).Scan(&pid))
		_, err := tx.ExecContext(&endsBehind{Context: context.Background()}, `INSERT INTO effects VALUES ('b')`)
		must(t, err)
		f.exec(`SELECT pg_terminate_backend($1, 10000)`, pid) // as the driver would
		return nil
	})
	b.effects("c")
	must(t, errors.Join(b.run()...))
	b.wantOneEach("a", "b", "c")
}

// An Observer that panics does not end the process, nor the lane.
func TestAnObserverThatPanics(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := (&oncemill.Inbox{DB: f.db, Batch: 10, Observer: &oncemill.Observer{Batch: func(int, int, time.Duration) { panic("no") }}}).Consumer("test")
	for i := range 3 {
		must(t, c.Once(within(t), fmt.Sprint(i), effect("a")))
	}
	f.wantEffects("a", 3)
}
