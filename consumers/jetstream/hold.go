package jetstream

import (
	"context"
	"time"
)

const (
	// holdDelay is after which time messages are delivered again, perhaps to
	// another member of the group, that were given back because of a hold.
	holdDelay = time.Second

	// A probe is repeated after leastProbe, doubled up to mostProbe, and gets
	// probeTimeout.
	leastProbe   = 100 * time.Millisecond
	mostProbe    = 2 * time.Second
	probeTimeout = 10 * time.Second
)

// hold is what the messages' contexts carry: see delivery.Info.
func (s *subscription) hold(probe func(context.Context) error) {
	if probe == nil {
		return
	}
	select {
	case s.holds <- probe:
	default:
	}
}

// pause stops fetching until probe returns nil, and gives back the messages that
// no handler has.
func (s *subscription) pause(hard context.Context, probe func(context.Context) error) {
	if s.holding {
		return
	}
	s.holding = true
	s.stopPulls()
	s.giveBack(holdDelay)
	s.log.Warn("oncemill: jetstream: fetching no messages until what they need is back", "topic", s.topic)
	s.workers.Go(func() {
		since := time.Now()
		if !untilBack(hard, probe) {
			return
		}
		select {
		case s.resumed <- struct{}{}:
			s.log.Info("oncemill: jetstream: fetching messages again after a pause", "topic", s.topic, "paused", time.Since(since).Round(time.Millisecond))
		case <-hard.Done():
		}
	})
}

// untilBack calls probe until it returns nil. It returns false when ctx has
// ended first.
func untilBack(ctx context.Context, probe func(context.Context) error) bool {
	for pause := leastProbe; sleep(ctx, pause); pause = min(2*pause, mostProbe) {
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
