package effects_test

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/testcontainers"
)

// Postgres is away for longer than the lease, and for longer than the worker tries to
// settle, between the effect and its settlement.
func TestPostgresIsAwayForLongerThanTheLease(t *testing.T) {
	t.Parallel()
	for _, policy := range policies {
		t.Run(string(policy), func(t *testing.T) {
			t.Parallel()
			server := ownPostgres(t)
			s := siteOn(t, policy, testcontainers.DatabaseOn(t, server))
			r := s.worker("worker")
			r.Lease = 1500 * time.Millisecond
			worker, _ := s.frozen(r, freezeAfterReply)
			must(t, server.Kill())
			worker.Signal(syscall.SIGCONT)
			eventually(t, "the worker gives up", func() bool { return worker.Logged("Handler returned error") > 0 })
			must(t, server.Start(within(t)))
			eventually(t, "Postgres answers", s.counts(`SELECT 1`))
			if policy == opaque {
				eventually(t, "the message is parked", s.counts(`SELECT count(*) FROM oncemill.parked`))
				s.drained()
				s.wants(map[fate]int{inDoubt: 1})
				return
			}
			s.drained()
			s.wants(map[fate]int{settled: 1})
		})
	}
}

// net/http sends a request again when a reused connection breaks, and this time it is
// refused: the last error is "connection refused", but the effect has happened.
func TestARefusedConnectionAfterABrokenOneProvesNothing(t *testing.T) {
	t.Parallel()
	for _, policy := range policies {
		t.Run(string(policy), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, policy)
			r := s.worker("worker")
			r.MaxInFlight = 1
			worker := start(t, r)
			worker.Await("settled "+s.order(1), 1) // from now on there is a connection to be reused
			gone := make(chan struct{})
			s.provider.misbehaves(func(r request) behaviour {
				if r.nth == 1 {
					s.provider.goAway() // nobody is there when it is sent again
					close(gone)
				}
				return loseReply
			})
			key := s.order(1)
			<-gone
			worker.Await("doubt "+key, 1)
			if n := s.events(oncemill.EventReleased); n != 0 {
				t.Error("it was released as if nothing had been sent")
			}
			s.provider.misbehaves(nil)
			s.provider.comeBack()
			s.drained()
			if policy == opaque {
				s.wants(map[fate]int{settled: 1, inDoubt: 1})
				return
			}
			s.wants(map[fate]int{settled: 2})
		})
	}
}

// Two resolvers in processes of their own share what is in doubt; one is killed in the
// middle of asking. Each claim is resolved once: half of the effects had happened, the
// other half is made then.
func TestTwoResolversOneOfThemKilled(t *testing.T) {
	t.Parallel()
	const claims = 200
	s := newSite(t, queryable)
	desk := s.inbox.Consumer(consumer)
	for i := range claims {
		number := fmt.Sprintf("%05d", i)
		key := "order-" + number
		s.sent = append(s.sent, key)
		claim, err := desk.Claim(within(t), key, oncemill.ClaimOptions{})
		must(t, err)
		if i%2 == 0 {
			s.provider.execute(request{key: claim.ProviderKey(), number: number}, claim.Deadline())
		}
		must(t, claim.Doubt(within(t), "the reply was lost", &oncemill.ParkedMessage{
			Topic: s.orders, UUID: key, Metadata: map[string]string{"desk": "tech"}, Payload: []byte(number),
		}))
	}
	r := s.resolver("victim")
	r.Fault, r.After = dieAsking, 30
	victim := start(t, r)
	heir := start(t, s.resolver("heir"))
	victim.AwaitDeath()
	s.relay()
	start(t, s.worker("worker"))
	s.drained()
	s.wants(map[fate]int{settled: claims})
	if n := s.events(oncemill.EventReleased); n != claims/2 {
		t.Errorf("%d claims were released, want %d", n, claims/2)
	}
	if heir.Times("asking") == 0 {
		t.Error("the other one had nothing to do")
	}
}
