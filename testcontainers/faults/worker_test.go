package faults_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/oncemill/oncemill/testcontainers/internal/actor"
)

// README: the process dies before the commit; nothing has happened, the
// redelivery runs.
func TestWorkerKilledBeforeCommit(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.order(40)
	for victim := range 3 { // each in the middle of its work, with others in flight
		r := s.worker(fmt.Sprint("victim ", victim))
		r.Fault, r.After = dieInHandler, 5
		p := start(t, r)
		p.AwaitDeath()
		handled, committed := p.Times("handling"), p.Times("committed")
		if p.Times("dying") != 1 || handled <= committed {
			t.Fatalf("it died at another moment: %d handled, %d committed", handled, committed)
		}
	}
	if s.effects(billing) >= s.sent {
		t.Fatal("nothing is left to be delivered again")
	}
	s.billed(start(t, s.worker("heir")))
	s.owed()
}

// README: the process dies after the commit, before the ack; the redelivery is
// acknowledged and does not run.
func TestWorkerKilledAfterCommitBeforeAck(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.order(40)
	var dead []string // keys of what was committed and never acknowledged
	var workers []*actor.Process
	for victim := range 3 {
		r := s.worker(fmt.Sprint("victim ", victim))
		r.Fault, r.After = dieBeforeAck, 5
		p := start(t, r)
		p.AwaitDeath()
		dead = append(dead, keyOf(p.Await("dying", 1)))
		workers = append(workers, p)
	}
	heir := start(t, s.worker("heir"))
	s.billed(heir)
	for _, key := range dead {
		duplicates := heir.Times("duplicate " + key)
		for _, p := range workers {
			duplicates += p.Times("duplicate " + key)
		}
		if duplicates == 0 {
			t.Errorf("message %s, committed and not acknowledged, has not come again", key)
		}
	}
	s.owed()
}

// keyOf returns the key in a line that a worker has said.
func keyOf(line string) string {
	return strings.Fields(line)[1]
}

// README: a process freezes in a handler; Postgres ends its transaction, the
// redelivery runs.
func TestWorkerFrozenInsideAHandler(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.order(20)
	r := s.worker("frozen")
	r.Fault, r.After, r.IdleTimeout = freezeInHandler, 3, time.Second
	frozen := start(t, r)
	key := keyOf(frozen.Await("freezing", 1))

	awake := start(t, s.worker("awake"))
	s.consumed(billing, s.orders)
	if n := s.count(`SELECT count(*) FROM effects WHERE key = $1 AND worker = 'awake'`, key); n != 1 {
		t.Errorf("%d effects of what the frozen worker was handling, want 1", n)
	}
	awake.Stop()

	// It goes on as if nothing had happened, and finds that it may not.
	frozen.Signal(syscall.SIGCONT)
	eventually(t, "the frozen worker's own attempt has failed", func() bool {
		return frozen.Times("failed handler "+key)+frozen.Times("failed commit "+key) > 0
	})
	s.balance(billing)
	s.order(5) // it is as good as new
	s.billed(frozen)
	s.owed()
}

// Workers are stopped and killed in turn, as deployments and crashes do, while
// the others go on.
func TestWorkersComeAndGo(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.order(2000)
	var workers []*actor.Process
	hire := func() {
		r := s.worker(fmt.Sprint("worker ", len(workers)))
		r.MaxInFlight = 32
		workers = append(workers, start(t, r))
	}
	hire()
	hire()
	for turn := range 8 {
		eventually(t, "the work goes on", func() bool { return s.effects(billing) >= 200*(turn+1) })
		if leaves := workers[turn]; turn%2 == 0 {
			leaves.Kill()
		} else {
			leaves.Stop()
		}
		hire()
	}
	s.billed(workers[len(workers)-2:]...)
	s.owed()
	info, err := s.consumer(billing+"~"+s.orders, s.orders)
	must(t, err)
	if info.Delivered.Consumer <= uint64(s.sent) {
		t.Error("nobody was killed with messages under way")
	}
}
