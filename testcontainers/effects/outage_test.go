package effects_test

import (
	"testing"
	"time"

	"github.com/oncemill/oncemill"
)

// net/http sends a request with an Idempotency-Key again by itself when a connection
// that it has reused breaks. The provider executes it once, and no error of such a call
// is taken for a sign that nothing happened.
func TestARequestThatNetHTTPSendsAgainIsOneEffect(t *testing.T) {
	t.Parallel()
	s := newSite(t, idempotent)
	s.provider.misbehaves(first(loseReply))
	start(t, s.worker("worker"))
	s.order(100)
	s.drained()
	s.wants(map[fate]int{settled: 100})
	if n := s.events(oncemill.EventReleased); n != 0 {
		t.Errorf("%d claims were released as if nothing had been sent", n)
	}
}

// The provider executes and then is silent, until the lease is over.
func TestAHalfOpenConnectionToTheProvider(t *testing.T) {
	t.Parallel()
	for p, want := range map[policy]map[fate]int{
		idempotent: {settled: 16}, queryable: {settled: 16}, opaque: {inDoubt: 16},
	} {
		t.Run(string(p), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, p)
			s.provider.misbehaves(first(hangAfter))
			start(t, s.worker("worker"))
			s.order(16)
			s.drained()
			s.wants(want)
		})
	}
}

// The provider executes when the lease is over already, within its landing bound. Asked
// before that, it does not have the effect; that is not believed.
func TestAProviderThatIsSlowerThanTheLease(t *testing.T) {
	t.Parallel()
	for _, p := range policies {
		t.Run(string(p), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, p)
			s.provider.lag = 50 * time.Millisecond
			s.provider.misbehaves(first(late))
			start(t, s.worker("worker"))
			if p == queryable {
				s.relay()
			}
			s.order(16)
			s.drained()
			got := s.audit()
			if p == opaque && got[inDoubt]+got[doubtedNot] != 16 || p != opaque && got[settled] != 16 {
				t.Errorf("%v", got)
			}
		})
	}
}

// While the provider refuses connections, nothing happens, nothing is in doubt, and
// nothing is given up, though each message is tried more often than one that fails may be.
// So it does not matter for how long that is.
func TestTheProviderIsAwayAndComesBack(t *testing.T) {
	t.Parallel()
	for _, p := range policies {
		t.Run(string(p), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, p)
			s.provider.goAway()
			r := s.worker("worker")
			r.MaxErrors = 4
			start(t, r)
			s.order(16)
			eventually(t, "each message was tried often enough", s.counts(`
				SELECT (count(*) = 16)::integer FROM (
					SELECT key FROM oncemill.events WHERE kind = 'released' GROUP BY key HAVING count(*) > 2 * 4
				) AS often`))
			if n := s.events(oncemill.EventInDoubt); n != 0 {
				t.Errorf("%d effects are in doubt, though nothing was sent", n)
			}
			s.provider.comeBack()
			s.drained()
			s.wants(map[fate]int{settled: 16})
		})
	}
}

// The provider loses the reply, cuts all further attempts, and forgets its keys. After
// the key lifetime there is no attempt any more.
func TestNoAttemptAfterTheKeyLifetime(t *testing.T) {
	t.Parallel()
	s := newSite(t, idempotent)
	s.policy = opaque // in the end
	s.provider.misbehaves(func(r request) behaviour {
		if r.nth == 1 {
			return loseReply
		}
		return cut
	})
	r := s.worker("worker")
	r.Policy, r.KeyLifetime = idempotent, 4*time.Second
	start(t, r)
	s.order(4)
	eventually(t, "the messages are parked", s.counts(`SELECT (count(*) = 4)::integer FROM oncemill.parked`))
	requests := s.provider.requests()
	s.provider.forget()
	s.provider.misbehaves(nil)
	start(t, r)
	s.drained()
	s.wants(map[fate]int{inDoubt: 4})
	if n := s.provider.requests(); n != requests || n < 8 {
		t.Errorf("%d requests, and %d when the key lifetime was over; want several per message, and none after it", n, requests)
	}
}

// One resolver is killed while it asks; another takes its claims over.
func TestAResolverThatIsKilledIsReplaced(t *testing.T) {
	t.Parallel()
	s := newSite(t, queryable)
	s.provider.misbehaves(first(loseReply))
	s.relay() // the victim may have claimed what it has not asked for
	r := s.worker("worker that dies asking")
	r.Fault, r.After = dieAsking, 2
	victim := start(t, r)
	s.order(32)
	victim.AwaitDeath()
	start(t, s.worker("heir"))
	start(t, s.resolver("second resolver"))
	s.drained()
	s.wants(map[fate]int{settled: 32})
}

// "Did not happen" releases the claim and puts the message back, from where a relay
// sends it to its topic, and its effect then happens once.
func TestWhatDidNotHappenGoesBackToItsTopic(t *testing.T) {
	t.Parallel()
	s := newSite(t, queryable)
	s.provider.misbehaves(first(cut))
	start(t, s.worker("worker"))
	s.relay()
	s.order(32)
	s.drained()
	s.wants(map[fate]int{settled: 32})
	if n := s.events(oncemill.EventReleased); n != 32 {
		t.Errorf("%d messages went back, want all 32", n)
	}
}
