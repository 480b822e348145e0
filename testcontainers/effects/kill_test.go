package effects_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/oncemill/oncemill/testcontainers/internal/actor"
)

// steps are all the moments at which a worker dies, by policy.
var steps = map[policy][]fault{
	idempotent: {dieBeforeClaim, dieWithinClaim, dieAfterClaim, dieAfterWriting, dieAfterExecution, dieAfterReply,
		dieBeforeSettle, dieWithinSettle, dieBeforeAck, dieBeforePark, dieWithinPark},
	queryable: {dieBeforeClaim, dieWithinClaim, dieAfterClaim, dieAfterWriting, dieAfterExecution, dieAfterReply,
		dieBeforeSettle, dieWithinSettle, dieBeforeAck, dieBeforePark, dieWithinPark, dieAsking, dieBeforeRelease, dieWithinRelease},
	opaque: {dieBeforeClaim, dieWithinClaim, dieAfterClaim, dieAfterWriting, dieAfterExecution, dieAfterReply,
		dieBeforeSettle, dieWithinSettle, dieBeforeAck, dieBeforePark, dieWithinPark},
}

// Workers die at every step of an effect, twice, while the provider declines, cuts
// connections, loses replies and hangs. Messages to an idempotent and to a queryable
// provider have their effects exactly once; those to an opaque one at most once, and
// the rest is in doubt and listed with its message.
func TestWorkersKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	const messages, rounds = 3400, 2
	for policy, faults := range steps {
		t.Run(string(policy), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, policy)
			s.provider.fault = chaos
			if policy == queryable {
				s.relay()
			}
			s.order(200)
			previous := start(t, s.victim(0, faults[0]))
			for i := 1; i < rounds*len(faults); i++ {
				next := start(t, s.victim(i, faults[i%len(faults)]))
				s.dies(previous)
				previous = next
			}
			s.dies(previous)
			for len(s.sent) < messages {
				s.order(1)
			}
			began := time.Now()
			start(t, s.worker("heir"))
			start(t, s.worker("another heir"))
			s.drained()
			tally := s.audit()
			t.Logf("%d kills, %d messages, %d requests, drained in %v: %v", rounds*len(faults), len(s.sent), s.provider.requests(), time.Since(began).Round(time.Millisecond), tally)
			refused := 0
			for _, key := range s.sent {
				if declined(key) {
					refused++
				}
			}
			if done := tally[settled] + tally[failed]; policy != opaque && (done != len(s.sent) || tally[failed] != refused) {
				t.Errorf("got %v; want all %d settled, but for the %d that failed", tally, len(s.sent), refused)
			}
			if policy == opaque && (tally[inDoubt] == 0 || tally[doubtedNot] == 0) {
				t.Errorf("got %v; want some in doubt with and without effect, or the test shows nothing", tally)
			}
		})
	}
}

// victim returns the role of a worker that is about to die.
func (s *site) victim(i int, f fault) role {
	r := s.worker(fmt.Sprintf("victim %d (%s)", i, f))
	r.Fault, r.After = f, 2+i%7
	if f == dieAsking || f == dieBeforeRelease || f == dieWithinRelease {
		r.After = 0 // such opportunities are rare
	}
	return r
}

// dies waits until a worker has killed itself, and gives it work meanwhile.
func (s *site) dies(p *actor.Process) {
	s.t.Helper()
	deadline := time.Now().Add(limit)
	for p.Times("dying") == 0 {
		if s.order(1); time.Now().After(deadline) {
			s.t.Fatal("a worker comes to no opportunity to die")
		}
		_, more := p.Said("dying")
		select {
		case <-more:
		case <-time.After(5 * time.Millisecond):
		}
	}
	p.AwaitDeath()
}
