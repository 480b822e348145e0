package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// A tally is what came of a turn, or of one caller's part in it.
type tally struct {
	took    time.Duration
	pairs   int             // ids that were claimed and settled
	claims  []time.Duration // how long each claim took
	settles []time.Duration
}

func (t tally) rate() float64 { return float64(t.pairs) / t.took.Seconds() }

// A pace tells a caller when to begin with the next pair: it waits until then. It
// returns false when the turn is over.
type pace func(begun time.Time) (due time.Time, ok bool)

// closedLoop has each caller begin as soon as it is done with the pair before.
func closedLoop(duration time.Duration) pace {
	return func(begun time.Time) (time.Time, bool) {
		now := time.Now()
		return now, now.Sub(begun) < duration
	}
}

// openLoop has pairs begin at a fixed rate, whether those before are done or not: by
// whichever caller is free, and late if none is. That wait counts as part of the claim.
func openLoop(duration time.Duration, rate float64) pace {
	var next atomic.Int64
	return func(begun time.Time) (time.Time, bool) {
		after := time.Duration(float64(next.Add(1)-1) / rate * float64(time.Second))
		if after >= duration {
			return time.Time{}, false
		}
		due := begun.Add(after)
		time.Sleep(time.Until(due))
		return due, true
	}
}

// turn has all callers of a contender work at a pace, and counts what they have left.
func turn(ctx context.Context, c contender, o options, name string, p pace) (tally, error) {
	callers := make([]caller, o.callers)
	for i := range callers {
		var err error
		if callers[i], err = c.dial(ctx); err != nil {
			return tally{}, fmt.Errorf("%s: %w", c.name, err)
		}
		defer callers[i].close()
	}
	parts, errs := make([]tally, o.callers), make([]error, o.callers)
	var all sync.WaitGroup
	begun := time.Now()
	for i, caller := range callers {
		all.Go(func() { parts[i], errs[i] = work(ctx, caller, fmt.Sprintf("%s:%d:", name, i), name, begun, p) })
	}
	all.Wait()
	sum := tally{took: time.Since(begun)}
	for _, part := range parts {
		sum.pairs += part.pairs
		sum.claims, sum.settles = append(sum.claims, part.claims...), append(sum.settles, part.settles...)
	}
	err := errors.Join(errs...)
	if err == nil {
		err = c.check(ctx, name, sum.pairs)
	}
	if err != nil {
		return tally{}, fmt.Errorf("%s, turn %s: %w", c.name, name, err)
	}
	return sum, nil
}

// work is the part of one caller.
func work(ctx context.Context, c caller, prefix, turn string, begun time.Time, p pace) (t tally, err error) {
	for ctx.Err() == nil {
		due, ok := p(begun)
		if !ok {
			return t, nil
		}
		id := fmt.Sprint(prefix, t.pairs)
		token, err := c.claim(turn, id)
		if err != nil {
			return t, fmt.Errorf("claim %s: %w", id, err)
		}
		claimed := time.Now()
		if err := c.settle(id, token); err != nil {
			return t, fmt.Errorf("settle %s: %w", id, err)
		}
		t.claims, t.settles = append(t.claims, claimed.Sub(due)), append(t.settles, time.Since(claimed))
		t.pairs++
	}
	return t, ctx.Err()
}
