package delivery

import (
	"context"
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
