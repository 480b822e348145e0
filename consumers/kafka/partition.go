package kafka

import (
	"context"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oncemill/oncemill/internal/delivery"
)

const (
	// A partition that holds mostHeld records or mostBytes, not counting the one
	// fetch that went beyond, is not fetched from until it holds half of that. It
	// is then included in the next fetch, and that begins when the one under way
	// has come back: after maxWait, if the other partitions have nothing new. In
	// that time the other half should not be used up.
	mostHeld  = 4000
	mostBytes = 4 << 20
	maxWait   = 500 * time.Millisecond // kgo's own is 5 seconds
)

// A partition is what a session knows of one that it reads. session.mu guards it.
//
// Each record that was fetched is an entry in held until it and all before it are
// finished; so what may be committed is what is before the first of them. An
// entry is also in a lane, with those that must take effect one after another: the
// partition's, or that of its record key.
type partition struct {
	id      int32
	member  string // as whom the group has given it to this client
	topicID [16]byte
	held    []*entry
	bytes   int
	lanes   map[string]*lane // by record key; one for all where the partition's order is kept
	placed  int              // lanes that have a place
	ready   []*lane          // those of them that may hand out something, in this order
	waiting []*lane          // for a place
	running int              // entries that are handed out, or about to be
	paused  bool             // not fetched from

	// next and epoch are what may be committed: the offset behind the finished
	// records, and the leader epoch of the last one. committed is what was. Both
	// are -1 at first. next goes back where the brokers have lost records.
	next, committed int64
	epoch           int32

	retired bool          // nothing of it is handed out any more
	gone    bool          // dropped: what becomes of its messages is of no interest
	quiet   chan struct{} // closed when nothing is running, while that is waited for
}

// An entry is a record on its way through.
type entry struct {
	p        *partition
	lane     *lane
	record   *kgo.Record
	number   uint64        // in its lane, from 1
	before   chan struct{} // closed when all before it in the lane are finished
	over     chan struct{} // the same with this one
	tries    uint64        // deliveries that were nacked
	due      bool          // of one in lane.redo: its delay is over
	finished bool

	// Of the delivery that is under way.
	msg    *message.Message
	cancel context.CancelFunc
	kept   bool // see delivery.Turn
}

// add takes up a partition.
func (s *session) add(id int32, member string) *partition {
	p := &partition{id: id, member: member, lanes: make(map[string]*lane), next: -1, committed: -1}
	s.partitions[id] = p
	s.order = append(s.order, p)
	return p
}

// accept takes in what was fetched.
func (s *session) accept(topicID [16]byte, fetched kgo.FetchPartition) {
	if len(fetched.Records) == 0 {
		return
	}
	s.watch.works()
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.partitions[fetched.Partition]
	switch {
	case s.ending:
		return
	case p == nil && s.group != "":
		return // it was revoked
	case p == nil:
		p = s.add(fetched.Partition, "")
	}
	p.topicID = topicID
	for _, record := range fetched.Records {
		s.enqueue(p, record)
	}
	if !p.paused && !p.retired && (len(p.held) >= mostHeld || p.bytes >= mostBytes) {
		p.paused = true
		s.client.PauseFetchPartitions(map[string][]int32{s.topic: {p.id}})
	}
	s.wakeUp()
}

func (s *session) enqueue(p *partition, record *kgo.Record) {
	l := s.laneOf(p, record)
	l.last++
	e := &entry{p: p, lane: l, record: record, number: l.last, over: make(chan struct{})}
	if n := len(l.entries); n > 0 {
		e.before = l.entries[n-1].over
	}
	l.entries = append(l.entries, e)
	p.held = append(p.held, e)
	p.bytes += size(record)
	s.queue(l, false)
}

func size(r *kgo.Record) int {
	n := len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		n += len(h.Key) + len(h.Value)
	}
	return n
}

// offer returns the entry to hand out next, nil for none. It stays the one on
// offer until it is handed out or offer is called again, and counts as running
// meanwhile, or its partition could be given away in the very moment in which a
// router receives it.
func (s *session) offer(ctx context.Context) *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.offered; e != nil {
		if s.mayHandOut(e.p) && s.stillNext(e) {
			return e
		}
		s.offered = nil
		s.rest(e)
		e.due = true
		e.lane.putBack(e)
		s.queue(e.lane, true)
	}
	for i, p := range s.order {
		if !s.mayHandOut(p) {
			continue
		}
		l := s.pick(p)
		if l == nil {
			continue
		}
		e := l.take()
		p.running++
		s.queue(l, false)
		s.offered = e
		s.prepare(ctx, e)
		// The partitions take turns.
		s.order = append(slices.Delete(s.order, i, i+1), p)
		return e
	}
	return nil
}

func (s *session) mayHandOut(p *partition) bool {
	return !s.holding && !s.ending && !p.retired
}

// prepare makes the message of one delivery.
func (s *session) prepare(ctx context.Context, e *entry) {
	ctx, e.cancel = context.WithCancel(ctx)
	e.kept = false
	e.msg = decode(e.record)
	e.msg.SetContext(s.with(ctx, e))
}

// rest ends a delivery: the entry is not running any more.
func (s *session) rest(e *entry) {
	e.cancel()
	e.msg, e.cancel = nil, nil
	e.lane.out--
	p := e.p
	if p.running--; p.running == 0 && p.quiet != nil {
		close(p.quiet)
		p.quiet = nil
	}
}

// handedOut lets somebody wait for what becomes of a message.
func (s *session) handedOut(e *entry) {
	s.mu.Lock()
	s.offered = nil
	msg := e.msg
	s.mu.Unlock()
	s.workers.Go(func() {
		select {
		case <-msg.Acked():
			s.checkKept(e)
			s.succeeded(e)
		case <-msg.Nacked():
			s.again(e, delivery.DelayAfter(msg.Context(), s.nakDelay(e.tries+1)))
		case <-s.hard.Done():
		}
	})
}

// succeeded takes note of an ack.
func (s *session) succeeded(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rest(e)
	s.wakeUp()
	p, l := e.p, e.lane
	if p.gone {
		return
	}
	e.finished = true
	l.pass()
	s.leavePlace(l)
	s.queue(l, false) // behind those that have waited
	if len(l.entries) == 0 && s.maxInFlight > 1 && p.lanes[string(e.record.Key)] == l {
		delete(p.lanes, string(e.record.Key)) // or there would be one for every key there ever was
	}
	s.advance(p)
}

// advance moves on to what may be committed.
func (s *session) advance(p *partition) {
	n := 0
	for n < len(p.held) && p.held[n].finished {
		e := p.held[n]
		p.next, p.epoch = e.record.Offset+1, e.record.LeaderEpoch
		p.bytes -= size(e.record)
		p.held[n] = nil
		n++
	}
	if n == 0 {
		return
	}
	p.held = p.held[n:]
	if p.paused && len(p.held) <= mostHeld/2 && p.bytes <= mostBytes/2 {
		s.resume(p)
	}
	s.mark()
}

func (s *session) resume(p *partition) {
	p.paused = false
	s.client.ResumeFetchPartitions(map[string][]int32{s.topic: {p.id}})
}

// again takes note of a nack: the message is delivered again after the delay, and
// those behind it in its lane wait, but for those that are out already.
func (s *session) again(e *entry, delay time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rest(e)
	s.wakeUp()
	if e.p.gone || s.ending {
		return
	}
	e.tries++
	e.due = false
	e.lane.putBack(e)
	s.leavePlace(e.lane)
	time.AfterFunc(delay, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !e.p.gone {
			e.due = true
			s.queue(e.lane, true)
			s.wakeUp()
		}
	})
}

func (s *session) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// stopHandingOut takes back what is on offer and offers nothing more.
func (s *session) stopHandingOut() {
	s.mu.Lock()
	s.ending = true
	s.mu.Unlock()
	s.offer(s.hard) // which takes back the last one
}

// all returns the partitions.
func (s *session) all() []*partition {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.order)
}

// retire sees to it that nothing more of some partitions is handed out, and that
// what waits for its turn is given back. What has begun comes to its end in spite of
// that: see oncemill.Inbox.DrainTimeout.
func (s *session) retire(ids []int32) (ps []*partition) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if p := s.partitions[id]; p != nil {
			p.retired = true
			for _, e := range p.held {
				if e.cancel != nil && e.lane.entries[0] != e {
					e.cancel()
				}
			}
			ps = append(ps, p)
		}
	}
	s.wakeUp()
	return ps
}

// awaitQuiet waits until no message of some partitions is being handled, or the
// limit is over. It returns how many are left. Nothing more of them may be handed
// out: they are retired, or the session is ending.
func (s *session) awaitQuiet(ps []*partition, limit time.Duration) (left int) {
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	for _, p := range ps {
		s.mu.Lock()
		if p.running > 0 && p.quiet == nil {
			p.quiet = make(chan struct{})
		}
		quiet := p.quiet
		s.mu.Unlock()
		if quiet == nil {
			continue
		}
		select {
		case <-quiet:
		case <-timeout.C:
			timeout.Reset(0) // for those that follow
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range ps {
		left += p.running
	}
	return left
}

// drop forgets partitions. The contexts of their messages end, and what becomes
// of these is of no interest any more. No turn begins: those before it may just be
// handled elsewhere.
func (s *session) drop(ps []*partition) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range ps {
		if s.partitions[p.id] != p {
			continue
		}
		p.gone, p.retired = true, true
		for _, e := range p.held {
			if e.cancel != nil {
				e.cancel()
			}
		}
		if p.paused { // or it would be if it comes back
			s.resume(p)
		}
		delete(s.partitions, p.id)
		s.order = slices.DeleteFunc(s.order, func(other *partition) bool { return other == p })
	}
}

// with returns ctx with the delivery in it, for FromContext and for the
// middlewares.
func (s *session) with(ctx context.Context, e *entry) context.Context {
	d := deliveryOf(e)
	ctx = context.WithValue(ctx, contextKey{}, d)
	info := delivery.Info{
		Delay:    new(delivery.Delay),
		Position: d.position(),
		Place:    d.place,
		Hold:     s.hold,
		Turn:     s.turn(e),
	}
	if !s.ignoreTimestamps {
		info.Time = d.Time
	}
	return delivery.With(ctx, info)
}
