package jetstream

import (
	"context"
	"time"

	"github.com/oncemill/oncemill/internal/delivery"
)

const (
	// trust is how long the source is believed to be the same while no pull is
	// there that would end with it.
	trust = time.Second

	// lookTimeout is short since a cluster without a leader drops requests.
	lookTimeout = 3 * time.Second

	// A source that fails is looked at again after leastRetry, doubled up to
	// mostRetry.
	leastRetry = 100 * time.Millisecond
	mostRetry  = 5 * time.Second
)

// A look is at the source: whether the stream and the consumer are there, and
// the same as before. Nothing is asked for while one is going on.
//
// It takes place when a pull has ended as it should not or an acknowledgement is
// not answered, after a reconnect, and after a time without pulls. If the stream has been deleted and made again
// unnoticed, a message of the new one would be taken for the one with the same
// number in the old one, and dropped as a duplicate.
type look struct {
	going    bool
	outdated bool // the connection was lost meanwhile: look again
	cancel   context.CancelFunc
	trusted  time.Time // when the source was last known to be the same
	failures int       // in a row
}

// looked is what a look has found.
type looked struct {
	src *source
	err error
}

// lookAgain starts a look. The pulls are given up: they may wait at a consumer
// that is gone.
func (s *subscription) lookAgain(hard context.Context) {
	s.stopPulls()
	if s.look.going {
		s.look.outdated = true
		s.look.cancel()
		return
	}
	s.startLook(hard, 0)
}

func (s *subscription) startLook(hard context.Context, pause time.Duration) {
	ctx, cancel := context.WithCancel(hard)
	s.look.going, s.look.outdated, s.look.cancel = true, false, cancel
	known, from := s.src, s.progress.next()
	s.workers.Go(func() {
		defer cancel()
		var l looked
		delivery.Sleep(ctx, pause)
		ctx, stop := context.WithTimeout(ctx, lookTimeout)
		defer stop()
		l.src, l.err = s.open(ctx, known, from)
		select {
		case s.looked <- l:
		case <-hard.Done():
		}
	})
}

func (s *subscription) found(hard context.Context, l looked) {
	s.look.going = false
	switch {
	case s.look.outdated:
		s.startLook(hard, 0)
	case l.err != nil:
		s.fails(hard, l.err)
	default:
		s.adopt(l.src)
	}
}

// adopt takes a source to pull from. What is left of another stream cannot be
// acknowledged any more.
func (s *subscription) adopt(src *source) {
	if s.src != nil && !s.src.same(src) {
		s.log.Warn("oncemill: jetstream: the stream is not the one that it was, starting from its beginning", "topic", s.topic,
			"stream", src.stream, "created", src.created, "previously", s.src.stream, "previously_created", s.src.created)
		for l := range s.leases {
			l.orphan.Store(true)
		}
		s.giveBack(0)
		s.progress = progress{}
	}
	s.src = src
	s.look.trusted = time.Now()
}

// fails stops what is going on and looks again after a while.
func (s *subscription) fails(hard context.Context, err error) {
	s.stopPulls()
	if s.look.failures == 0 {
		s.log.Warn("oncemill: jetstream: cannot fetch messages, trying again until it works", "topic", s.topic, "error", err)
	}
	pause := min(leastRetry<<min(s.look.failures, 10), mostRetry)
	s.look.failures++
	s.startLook(hard, pause)
}

func (s *subscription) works() {
	if s.look.failures > 0 {
		s.look.failures = 0
		s.log.Info("oncemill: jetstream: fetching messages again", "topic", s.topic)
	}
}

// progress is how far a subscription without a group has come, should the server
// lose its consumer. A group's members do not know each other's.
type progress struct {
	last uint64              // highest sequence delivered
	open map[uint64]struct{} // delivered, not acknowledged; as many as MaxAckPending at most
}

func (p *progress) delivered(seq uint64) {
	if p.open == nil {
		p.open = make(map[uint64]struct{})
	}
	p.open[seq] = struct{}{}
	p.last = max(p.last, seq)
}

func (p *progress) acknowledged(seq uint64) { delete(p.open, seq) }

// next is the sequence to go on from, 0 for the beginning.
func (p *progress) next() uint64 {
	if p.last == 0 {
		return 0
	}
	from := p.last + 1
	for seq := range p.open {
		from = min(from, seq)
	}
	return from
}
