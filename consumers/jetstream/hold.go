package jetstream

import (
	"context"
	"time"

	"github.com/oncemill/oncemill/internal/delivery"
)

// holdDelay is after which time messages are delivered again, perhaps to another
// member of the group, that were given back because of a hold.
const holdDelay = time.Second

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
		if !delivery.UntilBack(hard, probe) {
			return
		}
		select {
		case s.resumed <- struct{}{}:
			s.log.Info("oncemill: jetstream: fetching messages again after a pause", "topic", s.topic, "paused", time.Since(since).Round(time.Millisecond))
		case <-hard.Done():
		}
	})
}
