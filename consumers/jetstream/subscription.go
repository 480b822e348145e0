package jetstream

import (
	"context"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"
)

// flushTimeout bounds what a subscription that ends still says to the server.
const flushTimeout = 2 * time.Second

// A subscription is one call of Subscribe. One goroutine, that of run, has the
// say over it; others keep leases, look at the source and probe, and report to
// it.
//
// Slots keep the number of messages within bounds: each of maxInFlight is free,
// reserved by a pull, or occupied by a lease.
type subscription struct {
	settings
	topic string
	name  string // of the consumer, where there is no group

	out    chan *message.Message
	stop   chan struct{} // closed by Close
	ending chan struct{} // closed when nothing more is handed out

	// What the connection delivers.
	incoming chan *nats.Msg
	drained  chan *pull

	// What the workers report.
	workers  sync.WaitGroup
	released chan *lease
	looked   chan looked
	doubts   chan struct{} // a lease gives up its slot
	holds    chan func(context.Context) error
	resumed  chan struct{}

	// The rest is touched by run alone.
	src      *source
	look     look
	pulls    map[*nats.Subscription]*pull
	leases   map[*lease]struct{}
	loose    int      // leases without a slot
	queue    []*lease // those that nobody has received yet, in order
	holding  bool
	unacked  int // acknowledgements in a row that have failed
	progress progress
}

func newSubscription(set settings, topic string) *subscription {
	return &subscription{
		settings: set,
		topic:    topic,
		name:     "oncemill-" + nuid.Next(),
		out:      make(chan *message.Message),
		stop:     make(chan struct{}),
		ending:   make(chan struct{}),
		incoming: make(chan *nats.Msg, set.maxInFlight+256), // nats.go drops what there is no room for
		drained:  make(chan *pull, maxPulls),
		released: make(chan *lease),
		looked:   make(chan looked),
		doubts:   make(chan struct{}),
		holds:    make(chan func(context.Context) error, 1),
		resumed:  make(chan struct{}),
		pulls:    make(map[*nats.Subscription]*pull),
		leases:   make(map[*lease]struct{}),
	}
}

// run delivers until ctx ends, Close is called or the connection is closed.
func (s *subscription) run(ctx context.Context, src *source) {
	defer close(s.out)
	// The messages' contexts end as soon as the subscription does. A handler that
	// is running may go on without, as Once does, and is waited for; hard ends
	// the wait.
	messages, interrupt := context.WithCancel(ctx)
	defer interrupt()
	hard, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	defer giveUp()
	status := s.conn.StatusChanged(nats.CONNECTED, nats.CLOSED)
	defer s.conn.RemoveStatusListener(status)

	tick := time.NewTicker(time.Second)
	defer tick.Stop()

	s.adopt(src)
	for s.step(hard, messages, status, tick.C) {
	}
	close(s.ending)
	interrupt()
	s.finish(hard, messages, tick.C)
	giveUp()
	s.workers.Wait()
	s.forget()
}

// step waits for the next thing to happen, and is false if that is the end.
func (s *subscription) step(hard, messages context.Context, status <-chan nats.Status, tick <-chan time.Time) bool {
	s.fill(hard)
	var out chan<- *message.Message
	var next *message.Message
	if len(s.queue) > 0 {
		out, next = s.out, s.queue[0].msg
	}
	select {
	case out <- next:
		s.queue = s.queue[1:]
	case raw := <-s.incoming:
		s.received(hard, messages, raw)
	case p := <-s.drained:
		s.ended(hard, messages, p)
	case l := <-s.released:
		s.release(l)
	case found := <-s.looked:
		s.found(hard, found)
	case <-s.doubts:
		s.loose++
		if !s.look.going {
			s.lookAgain(hard)
		}
	case probe := <-s.holds:
		s.pause(hard, probe)
	case <-s.resumed:
		s.holding = false
	case <-tick:
		if err := s.checkPulls(hard, messages); err != nil && !s.look.going {
			s.fails(hard, err)
		}
	case now := <-status:
		return s.connection(hard, now)
	case <-s.stop:
		return false
	case <-messages.Done():
		return false
	}
	return true
}

func (s *subscription) connection(hard context.Context, now nats.Status) (goOn bool) {
	if now == nats.CLOSED {
		s.log.Error("oncemill: jetstream: the connection is closed, and so the subscription ends; unless that was meant, connect with nats.MaxReconnects(-1)",
			"topic", s.topic, "error", s.conn.LastError())
		return false
	}
	// Connected again, perhaps to a server that does not know our pulls.
	s.lookAgain(hard)
	return true
}

// fill asks for messages if there are slots for them. While a request is out
// already, it saves up slots for the next, since a request costs more than a
// message.
func (s *subscription) fill(hard context.Context) {
	for !s.look.going && !s.holding && len(s.pulls) < maxPulls {
		free := s.maxInFlight - len(s.leases) + s.loose
		for _, p := range s.pulls {
			free -= p.left
		}
		if free == 0 || len(s.pulls) > 0 && free < s.maxInFlight/4 {
			return
		}
		if len(s.pulls) == 0 && time.Since(s.look.trusted) > trust {
			s.lookAgain(hard)
			return
		}
		if s.src.batch > 0 {
			free = min(free, s.src.batch)
		}
		if err := s.startPull(free); err != nil {
			s.fails(hard, err)
		}
	}
}

// received takes what the server sends to a pull.
func (s *subscription) received(hard, messages context.Context, raw *nats.Msg) {
	p, known := s.pulls[raw.Sub]
	switch {
	case !known && isMessage(raw): // the pull was given up while disconnected
		_ = s.conn.Publish(raw.Reply, nakBody)
		return
	case !known:
		return
	}
	p.heard = time.Now()
	over, err := false, error(nil)
	if isMessage(raw) {
		s.works()
		s.accept(hard, messages, p, raw)
		p.left--
		over = p.left == 0
	} else {
		over, err = verdict(raw)
	}
	switch {
	case !over || p.draining:
	case err == nil:
		s.works()
		s.endPull(p)
	case !s.look.going && !s.isEnding():
		s.fails(hard, err)
	}
}

// ended takes the end of a pull that was given up. What the server had sent to
// it before has arrived by now.
func (s *subscription) ended(hard, messages context.Context, p *pull) {
	for len(s.incoming) > 0 {
		s.received(hard, messages, <-s.incoming)
	}
	s.endPull(p)
}

// accept takes a message, and gives it back at once if it is not to be handed
// out.
func (s *subscription) accept(hard, messages context.Context, p *pull, raw *nats.Msg) {
	d, err := deliveryOf(raw)
	if err != nil {
		s.log.Error("oncemill: jetstream: cannot acknowledge a message", "topic", s.topic, "error", err)
		return
	}
	ctx, cancel := context.WithCancel(messages)
	l := &lease{
		raw:    raw,
		msg:    decode(raw),
		src:    p.src,
		seq:    d.StreamSequence,
		tries:  d.Attempt,
		cancel: cancel,
		back:   make(chan time.Duration, 1),
	}
	l.msg.SetContext(d.with(ctx, l.src.created, s.hold))
	l.orphan.Store(!l.src.same(s.src))
	s.leases[l] = struct{}{}
	if s.group == "" {
		s.progress.delivered(l.seq)
	}
	s.workers.Go(func() { s.keep(hard, l) })
	switch {
	case l.orphan.Load():
		l.back <- 0
	case s.holding && !s.isEnding():
		l.back <- holdDelay
	default:
		s.queue = append(s.queue, l)
	}
}

// release takes back the slot of a message that is dealt with.
func (s *subscription) release(l *lease) {
	delete(s.leases, l)
	if l.loose {
		s.loose--
	}
	switch {
	case !l.acked:
	case l.err == nil:
		s.progress.acknowledged(l.seq)
		s.unacked = 0
	default:
		if s.unacked++; s.unacked == 1 {
			s.log.Warn("oncemill: jetstream: the server did not confirm an acknowledgement, the message may be delivered again",
				"topic", s.topic, "stream_sequence", l.seq, "uuid", l.msg.UUID, "error", l.err)
		}
	}
}

// giveBack has the messages delivered again that nobody has received.
func (s *subscription) giveBack(delay time.Duration) {
	for _, l := range s.queue {
		l.back <- delay
	}
	s.queue = nil
}

// finish gives back what it can and waits for the rest.
func (s *subscription) finish(hard, messages context.Context, tick <-chan time.Time) {
	s.stopPulls()
	deadline := time.NewTimer(s.drainTimeout)
	defer deadline.Stop()
	for len(s.pulls)+len(s.leases) > 0 {
		if len(s.pulls) == 0 { // else they might get again what is given back
			s.giveBack(0)
		}
		select {
		case raw := <-s.incoming:
			s.received(hard, messages, raw)
		case p := <-s.drained:
			s.ended(hard, messages, p)
		case <-tick:
			_ = s.checkPulls(hard, messages)
		case l := <-s.released:
			s.release(l)
		case <-s.doubts:
			s.loose++
		case <-s.looked:
		case <-s.holds:
		case <-s.resumed:
		case <-deadline.C:
			s.log.Warn("oncemill: jetstream: messages were not acknowledged within DrainTimeout, they will be delivered again after AckWait",
				"topic", s.topic, "messages", len(s.leases), "drain_timeout", s.drainTimeout)
			return
		}
	}
}

func (s *subscription) isEnding() bool {
	select {
	case <-s.ending:
		return true
	default:
		return false
	}
}

// forget sees to it that the server has heard everything, and removes a consumer
// that nobody will come back to.
func (s *subscription) forget() {
	if !s.conn.IsConnected() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	_ = s.conn.FlushWithContext(ctx)
	if s.group == "" && s.src != nil {
		_ = s.js.DeleteConsumer(ctx, s.src.stream, s.src.consumer) // else the server does, later
	}
}
