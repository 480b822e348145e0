package effects_test

import (
	"syscall"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
)

// A worker is frozen past its lease with the provider's reply in its hands, another takes
// over, and the first wakes up: its settlement is refused, and the events say so.
func TestAZombiesSettlementIsRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t, idempotent)
	r := s.worker("zombie")
	r.Fault = freezeAfterReply
	zombie := start(t, r)
	key := s.order(1)
	zombie.Await("freezing", 1)
	heir := start(t, s.worker("heir"))
	heir.Await("settled "+key, 1)
	zombie.Signal(syscall.SIGCONT)
	s.awaitEvents(key, oncemill.EventRefused, 1)
	s.drained()
	s.wants(map[fate]int{settled: 1})
}

// Nobody has taken the claim over: another worker has only parked its message.
func TestALateSettlementOfAParkedMessageIsFine(t *testing.T) {
	t.Parallel()
	s := newSite(t, opaque)
	r := s.worker("late")
	r.Fault = freezeAfterReply
	late := start(t, r)
	key := s.order(1)
	late.Await("freezing", 1)
	start(t, s.worker("other"))
	eventually(t, "the message is parked", s.counts(`SELECT count(*) FROM oncemill.parked WHERE key = $1`, key))
	late.Signal(syscall.SIGCONT)
	s.awaitEvents(key, oncemill.EventSettled, 1)
	s.drained()
	s.wants(map[fate]int{settled: 1})
}

// A resolver settles while the worker is frozen.
func TestAZombieIsFencedByAResolver(t *testing.T) {
	t.Parallel()
	s := newSite(t, queryable)
	r := s.worker("zombie")
	r.Fault = freezeAfterReply
	zombie := start(t, r)
	key := s.order(1)
	zombie.Await("freezing", 1)
	start(t, s.resolver("resolver")).Await("resolved "+key, 1)
	zombie.Signal(syscall.SIGCONT)
	s.awaitEvents(key, oncemill.EventRefused, 1)
	s.drained()
	s.wants(map[fate]int{settled: 1})
}

// Postgres is killed and started between the effect and its settlement.
func TestPostgresRestartsBetweenEffectAndSettlement(t *testing.T) {
	t.Parallel()
	for _, p := range []policy{idempotent, queryable, opaque} {
		t.Run(string(p), func(t *testing.T) {
			t.Parallel()
			server := ownPostgres(t)
			s := siteOn(t, p, databaseOn(t, server))
			r := s.worker("worker")
			r.Fault, r.Lease = freezeAfterReply, 30*time.Second
			worker := start(t, r)
			s.order(1)
			worker.Await("freezing", 1)
			must(t, server.Kill())
			worker.Signal(syscall.SIGCONT)
			worker.Await("failed", 1)
			must(t, server.Start(within(t)))
			s.drained()
			s.wants(map[fate]int{settled: 1})
		})
	}
}
