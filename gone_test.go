package oncemill_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
)

// In these tests DrainTimeout is longer than a test may last: whoever waits for it hangs.

// A starved is a pool of one connection, which the test has.
type starved struct {
	f    *fixture
	db   *sql.DB
	conn *sql.Conn
}

// starve takes the connection, once c has everything prepared on it.
func (f *fixture) starve(c *oncemill.Consumer) *starved {
	f.t.Helper()
	db := c.Inbox().DB
	db.SetMaxOpenConns(1)
	claim(f.t, c, "warm", oncemill.ClaimOptions{})
	refused(f.t, c, "warm", oncemill.ClaimOptions{}, oncemill.ErrInFlight)
	must(f.t, c.Once(within(f.t), "warm too", effect("warm")))
	conn, err := db.Conn(within(f.t))
	must(f.t, err)
	return &starved{f, db, conn}
}

// until waits for what gives no signal.
func (f *fixture) until(what string, is func() bool) {
	f.t.Helper()
	for ctx := within(f.t); !is(); time.Sleep(time.Millisecond) {
		if ctx.Err() != nil {
			f.t.Fatalf("waited in vain until %s", what)
		}
	}
}

// waited waits until so many more have come to wait for the connection.
func (s *starved) waited(n int, run func()) {
	s.f.t.Helper()
	before := s.db.Stats().WaitCount
	run()
	s.f.until("all wait for the connection", func() bool { return s.db.Stats().WaitCount >= before+int64(n) })
}

// wantGone wants an error that says that its caller has gone before anything was done.
func wantGone(t *testing.T, err error) {
	t.Helper()
	var e *oncemill.Error
	if !errors.Is(err, context.Canceled) || !errors.As(err, &e) || e.Op != oncemill.OpKey ||
		errors.Is(err, oncemill.ErrUnavailable) || errors.Is(err, oncemill.ErrDrained) || oncemill.IsHandlerError(err) {
		t.Errorf("got %v, want context.Canceled before anything was sent", err)
	}
}

// wantNoTrace wants nothing of those who have gone.
func (f *fixture) wantNoTrace() {
	f.t.Helper()
	if n := f.count(`SELECT (SELECT count(*) FROM oncemill.claims WHERE key LIKE 'gone%') + (SELECT count(*) FROM oncemill.events WHERE key LIKE 'gone%')`); n != 0 {
		f.t.Errorf("%d rows are there of callers that had gone before", n)
	}
}

// The first of them are in a statement that waits for a connection, the others behind it.
func TestACallerWhoLeavesTheQueueNeverClaims(t *testing.T) {
	t.Parallel()
	for _, driver := range []string{"postgres", "pgx"} {
		for name, opts := range map[string]oncemill.ClaimOptions{"without a nonce": {}, "with a nonce": {Nonce: nonce(1)}} {
			t.Run(driver+" "+name, func(t *testing.T) {
				t.Parallel()
				f := newFixture(t)
				in := &oncemill.Inbox{DB: f.open(driver, f.url), ClaimBatch: 8, DrainTimeout: time.Hour}
				c := in.Consumer("test")
				s := f.starve(c)
				const callers = 40
				ctx, leave := context.WithCancel(within(t))
				gone, stayed := make(chan error, callers), make(chan error, callers)
				s.waited(2, func() { // the lanes
					for i := range callers {
						go func() {
							_, err := c.Claim(ctx, fmt.Sprint("gone ", i), opts)
							gone <- err
						}()
					}
				})
				f.until("the others are in the queue", func() bool { return oncemill.Queued(in) >= callers-2*in.ClaimBatch })
				leave()
				for range callers {
					wantGone(t, <-gone)
				}
				for i := range callers {
					go func() {
						_, err := c.Claim(within(t), fmt.Sprint("stayed ", i), opts)
						stayed <- err
					}()
				}
				f.until("nobody is in the queue but them", func() bool { return oncemill.Queued(in) == callers })
				must(t, s.conn.Close())
				for range callers {
					must(t, <-stayed)
				}
				f.wantNoTrace()
				claim(t, c, "gone no more", opts)
			})
		}
	}
}

func TestACallerWhoLeavesWhileItWaitsForAConnectionNeverClaims(t *testing.T) {
	t.Parallel()
	for _, driver := range []string{"postgres", "pgx"} {
		for _, batch := range []int{0, 64} {
			t.Run(fmt.Sprint(driver, " ClaimBatch ", batch), func(t *testing.T) {
				t.Parallel()
				f := newFixture(t)
				in := &oncemill.Inbox{DB: f.open(driver, f.url), ClaimBatch: batch, DrainTimeout: time.Hour}
				c := in.Consumer("test")
				opts := oncemill.ClaimOptions{Origin: time.Now()} // which has a transaction of its own
				s := f.starve(c)
				const callers = 10
				ctx, leave := context.WithCancelCause(within(t))
				gone, stayed := make(chan error, callers), make(chan error, 1)
				s.waited(callers, func() {
					for i := range callers {
						go func() {
							_, err := c.Claim(ctx, fmt.Sprint("gone ", i), opts)
							gone <- err
						}()
					}
				})
				s.waited(1, func() {
					go func() {
						_, err := c.Claim(within(t), "stayed", opts)
						stayed <- err
					}()
				})
				leave(errors.New("whatever the reason"))
				for range callers {
					wantGone(t, <-gone)
				}
				must(t, s.conn.Close())
				must(t, <-stayed)
				f.wantNoTrace()
			})
		}
	}
}

// A leaving context has ended, which nobody was told yet who waits for that.
type leaving struct {
	context.Context
	left atomic.Bool
}

func (l *leaving) Err() error {
	if l.left.Load() {
		return context.Canceled
	}
	return l.Context.Err()
}

func TestACallerIsLookedAtRightBeforeItsClaimIsSent(t *testing.T) {
	t.Parallel()
	for _, driver := range []string{"postgres", "pgx"} {
		for _, batch := range []int{0, 64} {
			t.Run(fmt.Sprint(driver, " ClaimBatch ", batch), func(t *testing.T) {
				t.Parallel()
				f := newFixture(t)
				c := (&oncemill.Inbox{DB: f.open(driver, f.url), ClaimBatch: batch, DrainTimeout: time.Hour}).Consumer("test")
				s := f.starve(c)
				ctx := &leaving{Context: within(t)}
				gone := make(chan error, 1)
				s.waited(1, func() {
					go func() {
						_, err := c.Claim(ctx, "gone", oncemill.ClaimOptions{})
						gone <- err
					}()
				})
				ctx.left.Store(true)
				must(t, s.conn.Close())
				wantGone(t, <-gone)
				f.wantNoTrace()
				claim(t, c, "next", oncemill.ClaimOptions{})
			})
		}
	}
}

// The effect has happened.
func TestASettlementInTheQueueOutlivesItsCaller(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	c := (&oncemill.Inbox{DB: f.open("postgres", f.url), ClaimBatch: 64, DrainTimeout: time.Hour}).Consumer("test")
	kept := map[string]*oncemill.Claim{}
	for _, op := range []string{"settle", "fail", "release"} {
		kept[op] = claim(t, c, op, oncemill.ClaimOptions{})
	}
	s := f.starve(c)
	ctx, leave := context.WithCancel(within(t))
	done := make(chan error, 3)
	s.waited(3, func() {
		go func() { done <- kept["settle"].Settle(ctx, nil, nil) }()
		go func() { done <- kept["fail"].Fail(ctx, "no", nil) }()
		go func() { done <- kept["release"].Release(ctx, "not sent") }()
	})
	leave()
	must(t, s.conn.Close())
	for range 3 {
		must(t, <-done)
	}
	f.wantEvents("settle", oncemill.EventClaimed, oncemill.EventSettled)
	f.wantEvents("fail", oncemill.EventClaimed, oncemill.EventFailed)
	f.wantEvents("release", oncemill.EventClaimed, oncemill.EventReleased)
}

// Who has a nonce finds by another call what this one may have claimed; it needs no second
// try when nobody waits for it.
func TestALostClaimWithANonceIsNotMadeAgainForACallerWhoHasGone(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	l := f.losing()
	in := sharing(f.open("pgx", l.url))
	c := in.Consumer("test")
	claim(t, c, "warm", oncemill.ClaimOptions{})
	ctx, leave := context.WithCancel(within(t))
	l.lose("gone", "before", 1, leave)
	_, err := c.Claim(ctx, "gone", oncemill.ClaimOptions{Nonce: nonce(1)})
	want(t, err, context.Canceled)
	f.wantNoTrace()
	f.wantHeld(claim(t, c, "gone", oncemill.ClaimOptions{Nonce: nonce(1)}))
	in.DB.Close()
}

func TestADeliveryThatIsCancelledWhileItWaitsForAConnectionDoesNotBegin(t *testing.T) {
	t.Parallel()
	for _, driver := range []string{"postgres", "pgx"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			c := (&oncemill.Inbox{DB: f.open(driver, f.url), DrainTimeout: time.Hour}).Consumer("test")
			s := f.starve(c)
			ctx, closed := context.WithCancel(within(t))
			done := make(chan error, 1)
			s.waited(1, func() {
				go func() { done <- c.Once(ctx, "gone", effect("gone")) }()
			})
			closed()
			wantGone(t, <-done)
			must(t, s.conn.Close())
			f.wantNoTrace()
			must(t, f.consumer().Once(within(t), "gone", effect("gone")))
			f.wantEffects("gone", 1)
		})
	}
}
