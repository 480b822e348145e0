package delivery

import (
	"context"
	"sync/atomic"
	"time"
)

const (
	// A probe is repeated after leastProbe, doubled up to mostProbe, and gets
	// probeTimeout.
	leastProbe   = 100 * time.Millisecond
	mostProbe    = 2 * time.Second
	probeTimeout = 10 * time.Second
)

// UntilBack calls probe until it returns nil. It returns false when ctx has
// ended first.
func UntilBack(ctx context.Context, probe func(context.Context) error) bool {
	for pause := leastProbe; Sleep(ctx, pause); pause = min(2*pause, mostProbe) {
		if try(ctx, probe) == nil {
			return true
		}
	}
	return false
}

func try(ctx context.Context, probe func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	return probe(ctx)
}

// Sleep waits for d, or returns false when ctx has ended.
func Sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// NakDelay is after which time a message is delivered again whose attempt-th
// delivery failed, unless the user says otherwise: 100 ms, 200 ms ... 30 s.
func NakDelay(attempt uint64) time.Duration {
	const least, most, doublings = 100 * time.Millisecond, 30 * time.Second, 9
	return min(least<<min(max(attempt, 1)-1, doublings), most)
}

// A Delay is a wish about when a message that is nacked is delivered again. The zero
// value is none.
type Delay struct{ ns atomic.Int64 }

// Wish sets the delay.
func (d *Delay) Wish(delay time.Duration) { d.ns.Store(int64(delay)) }

// DelayAfter returns what was wished for the message with this context, and else
// otherwise.
func DelayAfter(ctx context.Context, otherwise time.Duration) time.Duration {
	info, _ := From(ctx)
	if info.Delay == nil {
		return otherwise
	}
	if wish := info.Delay.ns.Load(); wish > 0 {
		return time.Duration(wish)
	}
	return otherwise
}
