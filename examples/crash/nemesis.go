package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// A nemesis has things go wrong while the run goes on, a fault about every second. It takes
// the kinds in turns, in another order each time, so that each comes up. Faults at one
// thing follow each other; others overlap.
type nemesis struct {
	run   *run
	draws *rand.Rand
	trace *trace
	wg    sync.WaitGroup

	mu   sync.Mutex
	busy map[string]bool // by fault.at
	err  error
}

// What marks a fault in a trace.
const (
	nemesisKey = "-"
	fromOn     = ", from on "
)

// A fault is a kind of what goes wrong.
type fault struct {
	kind string
	at   string // what it happens to: no two of the same at a time; "": any number
	// happen has it happen, and mends it. It says what has happened; "": nothing, since
	// there was nobody that it could happen to.
	happen func(ctx context.Context, s *strike) (what string, err error)
}

// A strike is a fault that happens.
type strike struct {
	*run
	draws *rand.Rand
}

const (
	leastPause = 500 * time.Millisecond
	mostPause  = 1500 * time.Millisecond
)

func newNemesis(r *run) (*nemesis, error) {
	trace, err := openTrace(setting{Dir: r.dir, Role: "nemesis"})
	return &nemesis{run: r, draws: rand.New(rand.NewPCG(r.seed, 0)), trace: trace, busy: make(map[string]bool)}, err
}

// act goes on until the run's time is over, and returns when everything is mended.
func (n *nemesis) act(ctx context.Context) {
	defer n.trace.close()
	kinds := n.run.kinds()
	var turn []fault
	over := time.Now().Add(time.Duration(n.run.seconds) * time.Second)
	for number := uint64(1); time.Now().Before(over) && ctx.Err() == nil && n.failed() == nil; number++ {
		if len(turn) == 0 {
			for _, i := range n.draws.Perm(len(kinds)) {
				turn = append(turn, kinds[i])
			}
		}
		turn = n.strike(ctx, turn, number)
		sleep(ctx, between(n.draws, leastPause, mostPause))
	}
	n.wg.Wait()
}

// strike begins the first fault of the turn that can happen now, and returns the others.
func (n *nemesis) strike(ctx context.Context, turn []fault, number uint64) []fault {
	for i, f := range turn {
		if !n.take(f.at) {
			continue
		}
		s := &strike{n.run, rand.New(rand.NewPCG(n.run.seed, number))}
		n.wg.Go(func() {
			defer n.leave(f.at)
			begun := time.Now()
			what, err := f.happen(ctx, s)
			n.note(ctx, f, what, begun, err)
		})
		return append(turn[:i:i], turn[i+1:]...)
	}
	return turn
}

func (n *nemesis) take(at string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if at != "" && n.busy[at] {
		return false
	}
	n.busy[at] = true
	return true
}

func (n *nemesis) leave(at string) {
	n.mu.Lock()
	n.busy[at] = false
	n.mu.Unlock()
}

func (n *nemesis) failed() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.err
}

// note writes down what has happened.
func (n *nemesis) note(ctx context.Context, f fault, what string, begun time.Time, err error) {
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.err = errors.Join(n.err, fmt.Errorf("the fault %q: %w", f.kind, err))
		return
	}
	if what == "" {
		return
	}
	took := time.Since(begun)
	_ = n.run.crew.Do(ctx, func() error {
		n.run.faults[f.kind]++
		line := fmt.Sprintf("fault %d, %s: %s (%.1f s)", sum(n.run.faults), f.kind, what, took.Seconds())
		n.trace.note(nemesisKey, "%s%s%s", line, fromOn, begun.UTC().Format(traceTime))
		n.run.screen.Line(line)
		return nil
	})
}

func between(draws *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(draws.Int64N(int64(most-least)))
}

// pause waits for a time between two.
func (s *strike) pause(ctx context.Context, least, most time.Duration) {
	sleep(ctx, between(s.draws, least, most))
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
