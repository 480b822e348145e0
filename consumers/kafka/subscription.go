package kafka

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/internal/delivery"
)

const (
	// A session that could not be begun is tried again after leastRetry, doubled
	// up to mostRetry.
	leastRetry = 100 * time.Millisecond
	mostRetry  = 5 * time.Second

	// leaveTimeout bounds what a session that ends still says to the brokers.
	leaveTimeout = 5 * time.Second
)

// A subscription is one call of Subscribe. It is one session after another: the
// next begins when the topic turns out to be another one of the same name, and
// when the group has gone on without this member.
type subscription struct {
	settings
	topic string

	out  chan *message.Message
	stop chan struct{} // closed by Close

	holds chan func(context.Context) error

	keeping atomic.Int32 // whether the order of what is handed out ahead is kept
}

func newSubscription(set settings, topic string) *subscription {
	return &subscription{
		settings: set,
		topic:    topic,
		out:      make(chan *message.Message),
		stop:     make(chan struct{}),
		holds:    make(chan func(context.Context) error, 1),
	}
}

// run delivers until ctx ends or Close is called.
func (s *subscription) run(ctx context.Context, first *session) {
	defer close(s.out)
	ctx, cancel := context.WithCancel(ctx)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		select {
		case <-s.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	defer func() {
		cancel()
		<-stopped
	}()
	for next := first; next != nil; next = s.beginAgain(ctx) {
		switch next.run(ctx) {
		case nil:
			return
		case errRecreated:
			s.log.Warn("oncemill: kafka: the topic is not the one that it was, starting from the beginning of the new one", "topic", s.topic)
		case errEvicted:
			s.log.Warn("oncemill: kafka: "+goneOn+", joining it again", "topic", s.topic)
		}
	}
}

// beginAgain begins another session, as soon as that can be done. It returns nil
// when ctx has ended.
func (s *subscription) beginAgain(ctx context.Context) *session {
	for pause, warned := leastRetry, false; ; pause = min(2*pause, mostRetry) {
		next, err := s.begin(ctx)
		switch {
		case err == nil:
			return next
		case ctx.Err() != nil:
			return nil
		case !warned:
			warned = true
			s.log.Warn("oncemill: kafka: cannot subscribe again, trying until it works", "topic", s.topic, "error", err)
		}
		if !delivery.Sleep(ctx, pause) {
			return nil
		}
	}
}

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

// pause hands out nothing more until probe returns nil.
func (s *session) pause(probe func(context.Context) error) {
	if s.holding {
		return
	}
	s.holding = true
	s.log.Warn("oncemill: kafka: handing out no messages until what they need is back", "topic", s.topic)
	s.workers.Go(func() {
		since := time.Now()
		if !delivery.UntilBack(s.hard, probe) {
			return
		}
		select {
		case s.resumed <- struct{}{}:
			s.log.Info("oncemill: kafka: handing out messages again after a pause", "topic", s.topic, "paused", time.Since(since).Round(time.Millisecond))
		case <-s.hard.Done():
		}
	})
}

// What ends a session before its time.
var (
	errRecreated = errors.New("the topic was deleted and made again")
	errEvicted   = errors.New(goneOn)
)

const goneOn = "the group has gone on without this member"
