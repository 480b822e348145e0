package faults_test

import (
	"testing"

	"github.com/oncemill/oncemill/testcontainers/internal/proxy"
)

// README: COMMIT is sent and its answer lost; the redelivery finds the claim, or
// runs.
func TestCommitReplyLost(t *testing.T) {
	t.Parallel()
	const losses = 5
	for name, test := range map[string]struct {
		lost       proxy.Loss
		duplicates int // at least
	}{
		"answer lost":  {proxy.TheAnswer, losses},
		"request lost": {proxy.TheRequest, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.order(100)
			p, address := proxy.Through(t, s.postgres, every(7, losses, "COMMIT\x00", test.lost))
			r := s.worker("worker")
			r.Postgres, r.MaxErrors = address, 1 // it is not the handler's fault
			worker := start(t, r)
			s.billed(worker)
			s.owed()
			if n := p.Losses(); n != losses {
				t.Errorf("%d losses, want %d", n, losses)
			}
			if n := worker.Times("failed commit"); n != losses {
				t.Errorf("%d commits failed, want %d", n, losses)
			}
			if n := worker.Times("duplicate"); n < test.duplicates {
				t.Errorf("%d duplicates, want at least %d: what was committed comes again", n, test.duplicates)
			}
		})
	}
}

// README: the ack is lost; the redelivery is acknowledged and does not run.
func TestLostAck(t *testing.T) {
	t.Parallel()
	const losses = 3
	for name, test := range map[string]struct {
		lost       proxy.Loss
		duplicates int // at least
	}{
		"before it reaches the broker": {proxy.TheRequest, 1},
		"the broker's word for it":     {proxy.TheAnswer, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.order(100)
			p, address := proxy.Through(t, s.nats, every(3, losses, "+ACK\r\n", test.lost))
			r := s.worker("worker")
			r.NATS = address
			worker := start(t, r)
			s.billed(worker)
			s.owed()
			if n := p.Losses(); n != losses {
				t.Errorf("%d losses, want %d", n, losses)
			}
			if n := worker.Times("duplicate"); n < test.duplicates {
				t.Errorf("%d duplicates, want at least %d: what is not acknowledged comes again", n, test.duplicates)
			}
		})
	}
}
