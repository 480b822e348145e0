package effects_test

import (
	"syscall"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/testcontainers"
)

// A worker is frozen past its lease with the provider's reply in its hands, another takes
// over, and the first wakes up: its settlement is refused, and the events say so.
func TestAZombiesSettlementIsRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t, idempotent)
	zombie, key := s.frozen(s.worker("zombie"), freezeAfterReply)
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
	late, key := s.frozen(s.worker("late"), freezeAfterReply)
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
	zombie, key := s.frozen(s.worker("zombie"), freezeAfterReply)
	start(t, s.resolver("resolver")).Await("resolved "+key, 1)
	zombie.Signal(syscall.SIGCONT)
	s.awaitEvents(key, oncemill.EventRefused, 1)
	s.drained()
	s.wants(map[fate]int{settled: 1})
}

// Postgres is killed and started between the effect and its settlement.
func TestPostgresRestartsBetweenEffectAndSettlement(t *testing.T) {
	t.Parallel()
	for _, p := range policies {
		t.Run(string(p), func(t *testing.T) {
			t.Parallel()
			server := ownPostgres(t)
			s := siteOn(t, p, testcontainers.DatabaseOn(t, server))
			r := s.worker("worker")
			r.Lease = 30 * time.Second
			worker, _ := s.frozen(r, freezeAfterReply)
			must(t, server.Kill())
			worker.Signal(syscall.SIGCONT)
			worker.Await("failed", 1)
			must(t, server.Start(within(t)))
			s.drained()
			s.wants(map[fate]int{settled: 1})
		})
	}
}

// A worker is frozen with a claim in its hands and nothing sent. A person finds out that
// nothing happened; the message goes back, another worker makes the effect. The first
// wakes up when its lease is over, and sends nothing. What it says of its claim is
// refused, which is in the events: no token comes twice.
func TestAFrozenWorkerWhoseClaimWasReleased(t *testing.T) {
	t.Parallel()
	s := newSite(t, opaque)
	frozen, key := s.frozen(s.worker("frozen"), freezeAfterClaim)
	other := start(t, s.worker("other"))
	eventually(t, "the message is parked", s.counts(`SELECT count(*) FROM oncemill.parked WHERE key = $1`, key))
	doubts := s.doubts()
	if len(doubts) != 1 {
		t.Fatalf("%d claims are in doubt, want 1", len(doubts))
	}
	must(t, s.inbox.Consumer(consumer).Resolve(within(t), key, doubts[0].Token, oncemill.NotHappened, "asked the desk"))
	s.relay()
	other.Await("settled "+key, 1)
	frozen.Signal(syscall.SIGCONT)
	s.awaitEvents(key, oncemill.EventRefused, 1)
	s.drained()
	s.wants(map[fate]int{settled: 1})
	if n := s.provider.requests(); n != 1 {
		t.Errorf("%d requests reached the provider, want 1", n)
	}
}

// The same, but nobody has resolved the claim when the worker wakes up. It knows that it
// has sent nothing, and that is still its to say: the parked message goes back.
func TestAFrozenWorkerReleasesWhatWasParkedMeanwhile(t *testing.T) {
	t.Parallel()
	s := newSite(t, opaque)
	frozen, key := s.frozen(s.worker("frozen"), freezeAfterClaim)
	start(t, s.worker("other"))
	eventually(t, "the message is parked", s.counts(`SELECT count(*) FROM oncemill.parked WHERE key = $1`, key))
	s.relay()
	frozen.Signal(syscall.SIGCONT)
	s.awaitEvents(key, oncemill.EventSettled, 1)
	s.drained()
	s.wants(map[fate]int{settled: 1})
	if n := s.events(oncemill.EventReleased); n != 1 {
		t.Errorf("%d releases, want 1\n%s", n, s.history(key))
	}
}

// A resolver is frozen with the provider's answer in its hands, and another resolves the
// claim: the first one's word is refused.
func TestAFrozenResolverIsFenced(t *testing.T) {
	t.Parallel()
	s := newSite(t, queryable)
	s.provider.misbehaves(first(loseReply))
	r := s.resolver("frozen")
	r.Fault, r.AskTimeout = freezeAsking, time.Second
	frozen := start(t, r)
	worker := s.worker("worker that does not resolve")
	worker.Mute = true
	start(t, worker)
	key := s.order(1)
	frozen.Await("freezing", 1)
	heir := start(t, s.resolver("heir"))
	heir.Await("resolved "+key, 1)
	frozen.Signal(syscall.SIGCONT)
	s.awaitEvents(key, oncemill.EventRefused, 1)
	s.drained()
	s.wants(map[fate]int{settled: 1})
}

// A frozen worker wakes up while the one that has taken over is in the middle of its own
// attempt: nothing is settled yet, and still the first one's settlement is refused.
func TestAZombieIsRefusedWhileItsHeirIsAtWork(t *testing.T) {
	t.Parallel()
	s := newSite(t, idempotent)
	zombie, key := s.frozen(s.worker("zombie"), freezeAfterReply)
	r := s.worker("heir")
	r.Fault, r.Lease = freezeAfterReply, 30*time.Second
	heir := start(t, r)
	heir.Await("freezing", 1)
	zombie.Signal(syscall.SIGCONT)
	s.awaitEvents(key, oncemill.EventRefused, 1)
	if n := s.events(oncemill.EventSettled); n != 0 {
		t.Errorf("it was settled by the zombie\n%s", s.history(key))
	}
	zombie.Kill()
	heir.Signal(syscall.SIGCONT)
	heir.Await("settled "+key, 1)
	s.drained()
	s.wants(map[fate]int{settled: 1})
}
