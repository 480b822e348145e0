package effects_test

import (
	"fmt"
	"testing"

	"github.com/oncemill/oncemill"
)

// losing runs a test for each policy with a proxy that loses COMMITs of some steps, or
// their answers.
func losing(t *testing.T, policies []policy, steps []string, test func(t *testing.T, s *site, p *strikes)) {
	for _, policy := range policies {
		for _, answer := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, %s lost", policy, map[bool]string{false: "request", true: "answer"}[answer]), func(t *testing.T) {
				t.Parallel()
				s := newSite(t, policy)
				p := &strikes{steps: steps, every: 2, most: 5, answer: answer}
				s.through(t, p)
				test(t, s, p)
				if p.lost() != p.most {
					t.Errorf("%d COMMITs were lost, want %d", p.lost(), p.most)
				}
			})
		}
	}
}

var policies = []policy{idempotent, queryable, opaque}

// The answer to the COMMIT of a claim is lost, before the effect was begun. It is given
// back, or in doubt, and nothing happens twice.
func TestACommitOfAClaimIsLost(t *testing.T) {
	t.Parallel()
	const messages = 60
	losing(t, policies, []string{"claimed"}, func(t *testing.T, s *site, p *strikes) {
		s.relay()
		start(t, s.worker("worker"))
		s.order(messages)
		s.drained()
		got := s.audit()
		if got[settled]+got[doubtedNot] != messages || s.policy != opaque && got[settled] != messages {
			t.Errorf("got %v", got)
		}
		if n := s.events(oncemill.EventReleased); p.answer && n == 0 && got[doubtedNot] == 0 {
			t.Error("no claim was given back")
		}
	})
}

// A takeover is committed and nobody hears of it. The attempt before stays in doubt.
func TestACommitOfATakeoverIsLost(t *testing.T) {
	t.Parallel()
	losing(t, []policy{idempotent}, []string{"taken over"}, func(t *testing.T, s *site, _ *strikes) {
		s.provider.misbehaves(first(loseReply))
		start(t, s.worker("worker"))
		s.order(60)
		s.drained()
		s.wants(map[fate]int{settled: 60})
		if n := s.events(oncemill.EventReleased); n != 0 {
			t.Errorf("%d claims were released, each with an attempt that has had its effect", n)
		}
	})
}

// The COMMIT of a settlement is lost, or its answer: it is settled once, and what the
// handler writes with it is there once.
func TestACommitOfASettlementIsLost(t *testing.T) {
	t.Parallel()
	losing(t, policies, []string{"settled"}, func(t *testing.T, s *site, _ *strikes) {
		start(t, s.worker("worker"))
		s.order(60)
		s.drained()
		s.wants(map[fate]int{settled: 60})
		s.refusesNothing()
	})
}

// refusesNothing wants no attempt to have been told that its claim is no longer its own:
// what it had done already counts as done.
func (s *site) refusesNothing() {
	s.t.Helper()
	if n := s.events(oncemill.EventRefused); n != 0 {
		s.t.Errorf("%d calls were refused that had only lost their answer", n)
	}
}

// The COMMIT of a failure is lost, or its answer.
func TestACommitOfAFailureIsLost(t *testing.T) {
	t.Parallel()
	losing(t, policies, []string{"failed"}, func(t *testing.T, s *site, _ *strikes) {
		s.provider.misbehaves(func(request) behaviour { return decline })
		start(t, s.worker("worker"))
		s.order(60)
		s.drained()
		s.wants(map[fate]int{failed: 60})
		s.refusesNothing()
	})
}

// The COMMIT with which a message is parked is lost, or its answer: it is not
// acknowledged before it is parked.
func TestACommitOfADoubtIsLost(t *testing.T) {
	t.Parallel()
	losing(t, policies, []string{"in doubt", "blocked"}, func(t *testing.T, s *site, _ *strikes) {
		s.provider.misbehaves(first(loseReply))
		start(t, s.worker("worker"))
		s.order(60)
		s.drained()
		if s.policy == opaque {
			s.wants(map[fate]int{inDoubt: 60})
			return
		}
		s.wants(map[fate]int{settled: 60})
	})
}

// The COMMIT with which a claim is released and its message put back is lost, or its
// answer.
func TestACommitOfAReleaseIsLost(t *testing.T) {
	t.Parallel()
	losing(t, []policy{queryable}, []string{"released"}, func(t *testing.T, s *site, _ *strikes) {
		s.provider.misbehaves(first(cut))
		s.relay()
		start(t, s.worker("worker"))
		s.order(60)
		s.drained()
		s.wants(map[fate]int{settled: 60})
	})
}
