package oncemill_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/delivery"
)

// line is a line of messages as a subscriber hands them out, all at once.
type line struct {
	*batched
	id    uint64
	overs []chan struct{} // closed when a message was acknowledged

	mu  sync.Mutex
	ran []string
}

func newLine(b *batched, id uint64, n int) *line {
	l := &line{batched: b, id: id}
	for range n {
		l.overs = append(l.overs, make(chan struct{}))
	}
	return l
}

func (l *line) name(i int) string { return fmt.Sprintf("%d.%d", l.id, i) }

func (l *line) ctx(ctx context.Context, i int) context.Context {
	turn := &delivery.Turn{Line: l.id, Number: uint64(i + 1)}
	if i > 0 {
		turn.Before = l.overs[i-1]
	}
	return delivery.With(ctx, delivery.Info{Turn: turn})
}

// add hands out message i, which notes that it has run.
func (l *line) add(ctx context.Context, i int, fn func(context.Context, oncemill.Tx) error) {
	l.batched.add(l.ctx(ctx, i), l.name(i), oncemill.ClaimOptions{}, l.noting(i, fn))
}

func (l *line) noting(i int, fn func(context.Context, oncemill.Tx) error) func(context.Context, oncemill.Tx) error {
	return func(ctx context.Context, tx oncemill.Tx) error {
		l.mu.Lock()
		l.ran = append(l.ran, l.name(i))
		l.mu.Unlock()
		if fn != nil {
			return fn(ctx, tx)
		}
		return effect(l.name(i))(ctx, tx)
	}
}

// order checks which messages ran, and when.
func (l *line) order(want ...int) {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	var names []string
	for _, i := range want {
		names = append(names, l.name(i))
	}
	if !slices.Equal(l.ran, names) {
		l.t.Errorf("ran %v, want %v", l.ran, names)
	}
}

// However they arrive, the messages of a line run in its order, and in one batch.
func TestALineRunsInOrderInOneBatch(t *testing.T) {
	t.Parallel()
	b := newBatched(newFixture(t), &oncemill.Inbox{})
	one, two := newLine(b, 1, 4), newLine(b, 2, 2)
	for _, i := range []int{3, 1, 2} {
		one.add(within(t), i, nil)
	}
	two.add(within(t), 1, nil)
	b.effects("unordered")
	one.add(within(t), 0, nil)
	two.add(within(t), 0, nil)
	must(t, errors.Join(b.run()...))
	one.order(0, 1, 2, 3)
	two.order(0, 1)
	if n := b.count(`SELECT count(DISTINCT xmin::text) FROM effects`); n != 1 {
		t.Errorf("%d transactions, want 1", n)
	}
}

// What is behind a message that failed waits until that was delivered again and has
// succeeded, without being run or failing itself.
func TestSuccessorsOfAFailureAreHeldBack(t *testing.T) {
	t.Parallel()
	b := newBatched(newFixture(t), &oncemill.Inbox{})
	l := newLine(b, 1, 4)
	l.add(within(t), 0, nil)
	l.add(within(t), 1, func(context.Context, oncemill.Tx) error { return errors.New("no") })
	l.add(within(t), 2, nil)
	l.add(within(t), 3, nil)
	close(b.open)
	must(t, <-b.gate)
	must(t, <-b.ends[0])
	close(l.overs[0]) // acknowledged
	if err := <-b.ends[1]; !oncemill.IsHandlerError(err) {
		t.Fatalf("got %v, want the handler's error", err)
	}
	l.order(0, 1, 0, 1) // in the batch, and 1 alone
	again := b.c.Once(l.ctx(within(t), 1), l.name(1), l.noting(1, nil))
	must(t, again)
	l.order(0, 1, 0, 1, 1)
	close(l.overs[1])
	must(t, <-b.ends[2])
	close(l.overs[2])
	must(t, <-b.ends[3])
	b.wantOneEach(l.name(0), l.name(1), l.name(2), l.name(3))
	if n := b.count(`SELECT count(*) FROM oncemill.handler_errors`); n != 0 {
		t.Errorf("%d handler errors, want none", n)
	}
}

// The same where the one in front is refused before it runs, leaves, or finds no time.
func TestSuccessorsOfWhatDidNotRunAreHeldBack(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(b *batched, l *line) (err error){
		"refused": func(b *batched, l *line) error {
			must(b.t, b.fixture.consumer().OnceWith(within(b.t), l.name(1), oncemill.ClaimOptions{Fingerprint: []byte("1")}, effect("other")))
			b.add(l.ctx(within(b.t), 1), l.name(1), oncemill.ClaimOptions{Fingerprint: []byte("2")}, l.noting(1, nil))
			return oncemill.ErrKeyReused
		},
		"left": func(b *batched, l *line) error {
			ctx, cancel := context.WithCancel(within(b.t))
			b.ends = nil
			l.batched.add(l.ctx(within(b.t), 0), l.name(0), oncemill.ClaimOptions{}, l.noting(0, func(context.Context, oncemill.Tx) error {
				cancel()
				return nil
			}))
			l.add(ctx, 1, nil)
			return context.Canceled
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBatched(newFixture(t), &oncemill.Inbox{})
			l := newLine(b, 1, 3)
			if name != "left" {
				l.add(within(t), 0, nil)
			}
			target := prepare(b, l)
			l.add(within(t), 2, nil)
			close(b.open)
			must(t, <-b.gate)
			must(t, <-b.ends[0])
			close(l.overs[0])
			want(t, <-b.ends[1], target)
			l.order(0)
			close(l.overs[1]) // it was set aside
			must(t, <-b.ends[2])
			l.order(0, 2)
		})
	}
}

// A duplicate behind a message that fails is not said to be one before that has succeeded:
// it would be acknowledged, and what is behind it would run too early.
func TestADuplicateWaitsForItsPredecessor(t *testing.T) {
	t.Parallel()
	b := newBatched(newFixture(t), &oncemill.Inbox{})
	l := newLine(b, 1, 3)
	must(t, b.fixture.consumer().Once(within(t), l.name(1), effect(l.name(1))))
	l.add(within(t), 0, func(context.Context, oncemill.Tx) error { return errors.New("no") })
	l.add(within(t), 1, nil)
	l.add(within(t), 2, nil)
	close(b.open)
	must(t, <-b.gate)
	if err := <-b.ends[0]; err == nil {
		t.Fatal("no error")
	}
	if len(b.ends[1])+len(b.ends[2]) > 0 {
		t.Error("a message was handled before the one in front of it")
	}
	must(t, b.c.Once(l.ctx(within(t), 0), l.name(0), l.noting(0, nil)))
	close(l.overs[0])
	must(t, <-b.ends[1])
	close(l.overs[1])
	must(t, <-b.ends[2])
	l.order(0, 0, 0, 2)
}

// Of many lines, whose messages fail at random and are delivered again, each keeps its
// order.
func TestLinesKeepTheirOrderWhateverFails(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.exec(`CREATE TABLE log (line int, n int, at bigserial)`)
	c := (&oncemill.Inbox{DB: f.db, Batch: 16, BatchTime: 50 * time.Millisecond}).Consumer("test")
	var wg sync.WaitGroup
	for id := range 5 {
		l := newLine(&batched{fixture: f}, uint64(id+1), 60)
		for i := range l.overs {
			wg.Go(func() {
				defer close(l.overs[i])
				for try := range 3 {
					err := c.Once(l.ctx(within(t), i), l.name(i), func(ctx context.Context, tx oncemill.Tx) error {
						if (i+id)%7 == 0 && try < 2 {
							return errors.New("no")
						}
						// It sees what has run before, also in its own transaction.
						var before int
						if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM log WHERE line = $1`, id).Scan(&before); err != nil {
							return err
						}
						if before != i {
							t.Errorf("message %s runs behind %d others", l.name(i), before)
						}
						_, err := tx.ExecContext(ctx, `INSERT INTO log VALUES ($1, $2)`, id, i)
						return err
					})
					if err == nil {
						return
					}
				}
				t.Errorf("%s was not handled", l.name(i))
			})
		}
	}
	wg.Wait()
	if n := f.count(`SELECT count(*) FROM log`); n != 5*60 {
		t.Errorf("%d effects, want %d", n, 5*60)
	}
	if n := f.count(`SELECT count(*) FROM (SELECT n, lag(n) OVER (PARTITION BY line ORDER BY at) AS before FROM log) AS l WHERE n < before`); n != 0 {
		t.Errorf("%d inversions", n)
	}
}
