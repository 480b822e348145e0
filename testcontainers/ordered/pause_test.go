package ordered_test

import (
	"cmp"
	"slices"
	"testing"
	"time"

	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/actor"
)

// While relays are stopped, killed and started, the others publish what they leave at
// their next poll at the latest: nothing waits for a relay that is not there any more. No
// key is hot, since a hot one may wait for itself.
func TestRelaysComeAndGoWithoutAPause(t *testing.T) {
	t.Parallel()
	const (
		poll   = time.Second
		margin = 4 * time.Second // of a machine that has much else to do
		turns  = 15
	)
	s := newSite(t, testcontainers.Postgres(t), testcontainers.NATS(t).URL, 2*time.Minute, load{
		Producers: 1, Writers: 6, Messages: 2_500, Keys: 50, Pause: 50 * time.Millisecond, Simple: true, Even: true,
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
	late, pause := l.lateness()
	t.Logf("%d relays died with a batch; the latest message came %v after it was written, the longest pause was %v", died, late[0].after, pause)
	if died == 0 {
		t.Error("no relay has died with a batch in its hands")
	}
	if pause > poll+margin {
		t.Errorf("the longest pause was %v, want no more than %v", pause, poll+margin)
	}
	for n, m := range late {
		if m.after <= poll+margin || n == 5 {
			break
		}
		t.Errorf("%v came %v after it was written, at %s, want no more than %v\n%s",
			m.body, m.after, l.sent[m.uuid].at.Local().Format("04:05.000000"), poll+margin, s.history([]string{m.uuid}))
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

// A lateness is the time from a message's INSERT to its first delivery.
type lateness struct {
	delivery
	after time.Duration
}

// lateness returns all messages, the latest first, and the longest time between two
// deliveries.
func (l *ledger) lateness() (late []lateness, pause time.Duration) {
	seen := make(map[string]bool)
	for i, d := range l.stream {
		if !seen[d.uuid] {
			seen[d.uuid] = true
			late = append(late, lateness{d, d.at.Sub(l.sent[d.uuid].at)})
		}
		if i > 0 {
			pause = max(pause, d.at.Sub(l.stream[i-1].at))
		}
	}
	slices.SortFunc(late, func(a, b lateness) int { return cmp.Compare(b.after, a.after) })
	return late, pause
}
