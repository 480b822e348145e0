package groupcommit_test

import (
	"fmt"
	"syscall"
	"testing"
	"time"
)

// Everything at once: see the package's documentation.
func TestFaults(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ batch, messages int }{{0, 700}, {32, 1400}} {
		t.Run(fmt.Sprint("batch=", test.batch), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, test.batch, test.messages)
			a, b := s.start(s.worker(0)), s.start(s.worker(1))
			s.finish(a, b)
			s.balance()
			for _, k := range losable {
				if s.times("failpoint", k) == 0 && (s.batch > 1 || k != toUnclaim && k != toFlush) && !repeated() {
					t.Errorf("no connection was lost at %s", k)
				}
			}
		})
	}
}

// Two processes have the same messages at the same time, in different orders. They wait
// for each other's claims, but never in a circle.
func TestTheSameMessagesTwice(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ batch, messages int }{{0, 150}, {256, 2000}} {
		t.Run(fmt.Sprint("batch=", test.batch), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, test.batch, test.messages)
			a, b := s.worker(0), s.worker(1)
			for _, r := range []*role{&a, &b} {
				r.All, r.Calm, r.Failpoints, r.InFlight = true, true, false, 512
			}
			s.finish(s.start(a), s.start(b))
			s.balance()
		})
	}
}

// A process dies with a transaction of several messages open, or as it is committed.
func TestProcessesDie(t *testing.T) {
	t.Parallel()
	for _, f := range []fault{dieInHandler, dieBeforeCommit, dieAfterCommit} {
		eachBatch(t, f, func(t *testing.T, s *site, r role) {
			dead, alive := s.start(r), s.start(s.worker(1))
			dead.AwaitDeath()
			s.finish(alive, s.start(s.heir(0)))
			s.balance()
		})
	}
}

// A process freezes with a transaction of several messages open, which Postgres ends,
// and goes on when others have done its work.
func TestProcessesFreeze(t *testing.T) {
	t.Parallel()
	for _, f := range []fault{freezeInHandler, freezeInCommit} {
		eachBatch(t, f, func(t *testing.T, s *site, r role) {
			r.IdleTimeout = time.Second
			frozen, alive := s.start(r), s.start(s.worker(1))
			frozen.Await("freezing", 1)
			s.finish(alive, s.start(s.heir(0)))
			s.balance()
			frozen.Signal(syscall.SIGCONT)
			s.finish(frozen)
			s.balance()
		})
	}
}

// Handlers do nothing for so long that Postgres ends their transactions, with the effects
// of others in them.
func TestHandlersIdle(t *testing.T) {
	t.Parallel()
	eachBatch(t, "idle", func(t *testing.T, s *site, a role) {
		b := s.worker(1)
		for _, r := range []*role{&a, &b} {
			r.IdleTimeout, r.IdleEvery = 600*time.Millisecond, s.messages/10
		}
		s.finish(s.start(a), s.start(b))
		s.balance()
	})
}

// A process is told to stop with transactions of several messages open.
func TestProcessesStop(t *testing.T) {
	t.Parallel()
	eachBatch(t, "stop", func(t *testing.T, s *site, r role) {
		stops, alive := s.start(r), s.start(s.worker(1))
		stops.Await("acked", 60)
		stops.Stop()
		s.finish(alive, s.start(s.heir(0)))
		s.balance()
	})
}

// eachBatch runs a test with batches and without, with the role of a worker that has a
// fault.
func eachBatch(t *testing.T, f fault, test func(t *testing.T, s *site, r role)) {
	for _, c := range []struct{ batch, messages, after int }{{0, 200, 6}, {32, 450, 6}} {
		t.Run(fmt.Sprintf("%s/batch=%d", f, c.batch), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, c.batch, c.messages)
			r := s.worker(0)
			r.Fault, r.After = f, c.after
			test(t, s, r)
		})
	}
}
