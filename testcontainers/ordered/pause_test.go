package ordered_test

import (
	"testing"
	"time"

	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/actor"
)

// While relays are stopped, killed and started, the others publish what they leave at
// their next poll at the latest: nothing waits for a relay that is not there any more.
func TestRelaysComeAndGoWithoutAPause(t *testing.T) {
	t.Parallel()
	const (
		poll   = time.Second
		margin = 4 * time.Second // of a machine that has much else to do
		turns  = 15
	)
	s := newSite(t, testcontainers.Postgres(t), testcontainers.NATS(t).URL, 2*time.Minute, load{
		Producers: 1, Writers: 6, Messages: 3_000, Keys: 40, Pause: 40 * time.Millisecond, Simple: true,
	})
	s.poll, s.calm, s.steady = poll, true, true
	s.timeout, s.backoff = 0, 0 // the defaults: who freezes would hold others up for 21 seconds
	var present []*actor.Process
	come := func(faults ...fault) (came []*actor.Process) {
		for _, f := range faults {
			p := s.relay(f, 0)
			p.Await("running", 1)
			came = append(came, p)
		}
		return came
	}
	died := 0
	victims := come(dieBeforePublishing, dieAfterPublishing)
	present = come("")
	s.produce()
	for turn := range turns { // between one and three are there
		eventually(t, "the producers go on", func() bool { return s.progress() >= 100*(turn+1)/(turns+1) })
		switch turn % 4 {
		case 0:
			for _, p := range victims {
				died += s.dies(p)
			}
		case 1:
			present = append(present, come("", "")...)
		case 2:
			present[0].Stop()
			present[1].Stop()
			present = present[2:]
		case 3:
			victims = come(dieBeforePublishing, dieAfterPublishing)
		}
	}
	s.drained()
	for _, p := range present {
		p.Stop()
	}
	l := s.read()
	s.balance(l, false)
	latest, pause := l.lateness()
	t.Logf("%d relays died with a batch; the latest message came %v after it was written, the longest pause was %v", died, latest, pause)
	if died == 0 {
		t.Error("no relay has died with a batch in its hands")
	}
	if latest > poll+margin || pause > poll+margin {
		t.Errorf("the latest message came %v after it was written, and the longest pause was %v: want no more than %v", latest, pause, poll+margin)
	}
}

// dies waits until a relay has died with a batch in its hands, and returns 1. If it comes
// to none, it is killed.
func (s *site) dies(p *actor.Process) int {
	s.t.Helper()
	eventually(s.t, "a relay comes to a batch", func() bool { return p.Times("dying") > 0 || s.idle() })
	if p.Times("dying") == 0 {
		p.Kill()
		return 0
	}
	p.AwaitDeath()
	return 1
}

// lateness returns the longest time from a message's INSERT to its first delivery, and the
// longest between two deliveries.
func (l *ledger) lateness() (latest, pause time.Duration) {
	seen := make(map[string]bool)
	for i, d := range l.stream {
		if !seen[d.uuid] {
			seen[d.uuid] = true
			latest = max(latest, d.at.Sub(l.sent[d.uuid].at))
		}
		if i > 0 {
			pause = max(pause, d.at.Sub(l.stream[i-1].at))
		}
	}
	return latest, pause
}
