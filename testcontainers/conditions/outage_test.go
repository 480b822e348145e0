package conditions_test

import (
	"strings"
	"testing"
	"time"
)

// A broker is down for an hour: after 10 seconds the relay's pauses are as long as they
// get, so what it does in the 20 after that it does for the rest of the hour.
func TestABrokerThatIsDownForAnHour(t *testing.T) {
	t.Parallel()
	const (
		keys, total = 50, 60_000
		settle      = 10 * time.Second
		rest        = 20 * time.Second
		mostCPU     = rest / 20
		mostMemory  = 100 * mib
	)
	s := newSite(t, nil)
	d := s.relay()
	s.load("a", 0, 1000, keys)
	s.awaitEmpty()
	until(t, "it is ready", patience, d.ready)
	before := strings.Count(d.log.String(), "\n")

	must(t, s.server.Stop())
	s.load("a", 1000, total/2, keys)
	d.log.await(t, "cannot go on")
	until(t, "it is not ready", patience, func() bool { return !d.ready() })
	down := time.Now()
	time.Sleep(settle) // nothing is to happen
	was, _ := d.usage()
	s.load("a", total/2, total, keys)
	time.Sleep(rest)
	is, ok := d.usage()
	t.Logf("%v of processor time in %v of an outage", is.cpu-was.cpu, rest)
	if ok && is.cpu-was.cpu > mostCPU {
		t.Errorf("it is busy while the broker is down: %v of processor time in %v, want at most %v", is.cpu-was.cpu, rest, mostCPU)
	}
	if n := s.count(`SELECT count(*) FROM oncemill.outbox WHERE attempts > 0 OR parked_at IS NOT NULL OR not_before IS NOT NULL OR last_error IS NOT NULL`); n > 0 {
		t.Errorf("the outage is held against %d rows", n)
	}
	if n := s.left(); n != total-1000 {
		t.Errorf("%d rows wait, want %d", n, total-1000)
	}
	logged(t, d, before, 2, "NATS connection lost", "cannot go on")

	must(t, s.server.Start(within(t)))
	back := time.Now()
	until(t, "it goes on", patience, func() bool { return d.log.Count("goes on") == 1 }, d.log.String)
	t.Logf("it was down for %v, and the relay went on %v after it was back", time.Since(down).Round(time.Second), time.Since(back).Round(time.Millisecond))
	s.awaitEmpty()
	until(t, "it is ready again", patience, d.ready)
	logged(t, d, before, 4, "NATS connection is back", "goes on")
	d.wantMemory(mostMemory)
	d.stop()
	if n := s.arrived(total, keys); n > 0 {
		t.Errorf("%d messages came twice", n)
	}
}

// logged wants each of the words in the log once, and no more than so many lines.
func logged(t *testing.T, d *daemon, before, most int, words ...string) {
	t.Helper()
	if n := strings.Count(d.log.String(), "\n") - before; n > most {
		t.Errorf("%d lines in the log since the broker went, want at most %d", n, most)
	}
	for _, word := range words {
		if n := d.log.Count(word); n != 1 {
			t.Errorf("it says %d times %q", n, word)
		}
	}
}
