package kafka_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/oncemill/oncemill/testcontainers/internal/actor"
)

// batching is a worker whose subscriber hands out ahead what its Inbox takes together.
func (s *site) batching(name string) role {
	r := s.worker(name)
	r.Batch, r.Ahead = 64, 64
	return r
}

// Handlers that fail and panic in the middle of batches, members that join, leave
// and are killed: the order of every partition holds, and each has its effect once.
func TestBatchesKeepTheOrderOfEveryPartition(t *testing.T) {
	t.Parallel()
	s := newSite(t, 6)
	s.order(12_000)
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	workers := s.comeAndGo(1500, func(n int) role {
		r := s.batching(fmt.Sprint("worker ", n))
		r.Mishaps, r.Seed = 200, seed+uint64(n)
		return r
	})
	s.billed(workers[len(workers)-2:]...)
	s.ordered()
	s.inTurn()
	mishaps := 0
	for _, p := range workers {
		mishaps += p.Times("mishap")
		if n := p.Logged("Subscriber.Ahead is set"); n > 0 {
			t.Error("the subscriber takes its router for one that does not keep the order")
		}
	}
	if n := s.transactions(); mishaps == 0 || n > 12_000/4 {
		t.Errorf("%d effects in %d transactions, %d mishaps: the scenario does not work", s.effects(), n, mishaps)
	}
}

// The same for each record key, where that makes the lines.
func TestBatchesKeepTheOrderOfEveryKey(t *testing.T) {
	t.Parallel()
	s := newSite(t, 3)
	s.order(4000)
	var workers []*actor.Process
	for i := range 3 {
		r := s.batching(fmt.Sprint("worker ", i))
		r.MaxInFlight, r.Ahead = 8, 16
		r.Mishaps, r.Seed = 200, uint64(time.Now().UnixNano())
		workers = append(workers, start(t, r))
		s.awaitEffects(1000 * (i + 1))
		if i < 2 {
			workers[i].Stop()
		}
	}
	s.billed(workers[2])
	// The orders of a customer have every 50th number.
	if n := s.count(`
		SELECT count(*) FROM (
			SELECT number - lag(number, 1, number - 50) OVER (PARTITION BY number % 50 ORDER BY seq) AS step FROM effects WHERE handler = $1
		) AS e WHERE step <> 50`, s.group); n != 0 {
		t.Errorf("%d effects are out of order in their key", n)
	}
	if n := s.transactions(); n > 4000/2 {
		t.Errorf("4000 effects in %d transactions", n)
	}
}

// Two partitions are enough for large transactions.
func TestAheadFillsBatchesFromFewPartitions(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2)
	s.order(2000)
	s.billed(start(t, s.batching("worker")))
	s.inTurn()
	if n := s.transactions(); n > 2000/16 {
		t.Errorf("2000 effects in %d transactions", n)
	}
}

// A message in the middle of a partition fails again and again. Those behind it wait
// for it inside of Once: they do not fail, and nobody counts anything against them.
// When it is a dead letter, they go on.
func TestWhatIsBehindAFailureWaitsAndIsNotCounted(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1)
	s.order(60)
	poison := s.keys[20]
	r := s.batching("worker")
	r.Poison, r.MaxErrors = poison, 6
	worker := start(t, r)
	worker.Await("handling "+poison, 5)
	if n := s.count(`SELECT count(*) FROM oncemill.handler_errors WHERE key <> $1`, poison); n != 0 {
		t.Errorf("%d other messages have handler errors", n)
	}
	if n := s.effects(); n > 20 {
		t.Errorf("%d effects, and only 20 orders are before the one that fails", n)
	}
	s.consumed(s.group, s.topic)
	worker.Stop()
	s.balance(s.group, 1)
	s.ordered()
	for number, key := range s.keys {
		if n := worker.Times("failed handler " + key); number != 20 && n > 0 {
			t.Errorf("order %d has failed %d times", number, n)
		}
		if n := worker.Times("handling " + key); number > 20 && n != 1 {
			t.Errorf("order %d, which is behind the one that fails, ran %d times", number, n)
		}
	}
}

// A worker is stopped in the middle of a batch: what has begun is committed and
// acknowledged, the rest given back, and its successor has no duplicate.
func TestAWorkerIsStoppedInMidBatch(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1)
	s.order(300)
	r := s.batching("worker")
	r.Slow = 10 * time.Millisecond
	worker := start(t, r)
	worker.Await("handling", 20)
	worker.Stop()
	done := s.effects()
	if _, committed := s.lag(s.group, s.topic); done == 0 || done == 300 || committed != int64(done) {
		t.Errorf("%d effects, and %d messages are committed", done, committed)
	}
	heir := start(t, s.batching("heir"))
	s.billed(heir)
	s.inTurn()
	if n := heir.Times("duplicate"); n > 0 {
		t.Errorf("%d messages came again that were acknowledged", n)
	}
}

// Without a Batch, Once does not keep the order of messages that are handed out
// ahead; so they are not.
func TestAheadWithoutABatchIsNoticed(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2)
	s.order(200)
	r := s.batching("worker")
	r.Batch, r.FailEvery = 0, 20
	worker := start(t, r)
	s.billed(worker)
	s.inTurn()
	if n := worker.Logged("Batch above 1"); n != 1 {
		t.Errorf("the log says %d times what is missing, want once", n)
	}
}
