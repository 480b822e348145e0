package kafka

import (
	"cmp"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oncemill/oncemill/internal/delivery"
)

// A lane is a line of entries that take effect one after another. Where whoever
// handles them sees to that, several are out at a time: see Subscriber.Ahead.
//
// What is handed out next is the first of them that is neither out nor
// acknowledged. If that one was nacked and waits for its delay, the others wait for
// it, also those that were nacked after it.
type lane struct {
	p       *partition
	line    uint64 // see delivery.Turn; 0: an entry of its own, that is in no line
	last    uint64
	entries []*entry // from the first that is not acknowledged
	next    int      // in entries: the first that was never handed out
	redo    []*entry // to be handed out again, in the order of their numbers
	out     int      // handed out, or about to be

	// Of a partition's lanes only maxInFlight have a place, and with it something
	// out or something to hand out. One without place that has is waiting.
	placed bool
	queued bool // it is in partition.ready or partition.waiting
}

// laneOf finds the lane of a record, or makes one. A record without key is in no
// line where only keys make lines.
func (s *session) laneOf(p *partition, record *kgo.Record) *lane {
	name := ""
	if s.maxInFlight > 1 {
		if record.Key == nil {
			return &lane{p: p}
		}
		name = string(record.Key)
	}
	l := p.lanes[name]
	if l == nil {
		l = &lane{p: p, line: delivery.NewLine()}
		p.lanes[name] = l
	}
	return l
}

// candidate returns the entry to hand out next, nil for none.
func (l *lane) candidate() *entry {
	switch {
	case len(l.redo) > 0 && l.redo[0].due:
		return l.redo[0]
	case len(l.redo) > 0 || l.next == len(l.entries):
		return nil
	}
	return l.entries[l.next]
}

// take removes the candidate from what is to be handed out.
func (l *lane) take() *entry {
	e := l.candidate()
	if len(l.redo) > 0 {
		l.redo = l.redo[1:]
	} else {
		l.next++
	}
	l.out++
	return e
}

// putBack has an entry handed out again, before all that follow it.
func (l *lane) putBack(e *entry) {
	i, _ := slices.BinarySearchFunc(l.redo, e, func(a, b *entry) int { return cmp.Compare(a.number, b.number) })
	l.redo = slices.Insert(l.redo, i, e)
}

// pass ends the turns that are over. The acks of a batch come in any order, and
// what is behind a gap may have to wait for a message that is delivered again.
func (l *lane) pass() {
	n := 0
	for n < len(l.entries) && l.entries[n].finished {
		close(l.entries[n].over)
		l.entries[n] = nil
		n++
	}
	l.entries, l.next = l.entries[n:], l.next-n
}

// mayGoOn reports whether a lane may hand out something, if it has a place.
func (s *session) mayGoOn(l *lane) bool {
	return l.candidate() != nil && (l.out == 0 || l.out < s.ahead && s.orderIsKept())
}

// queue has a lane hand out its candidate, if it may, as soon as there is a place
// for it. What is urgent goes before the other lanes.
func (s *session) queue(l *lane, urgent bool) {
	if l.queued || !s.mayGoOn(l) {
		return
	}
	p := l.p
	if !l.placed && p.placed < s.maxInFlight {
		l.placed = true
		p.placed++
	}
	l.queued = true
	queue := &p.waiting
	if l.placed {
		queue = &p.ready
	}
	if urgent {
		*queue = slices.Insert(*queue, 0, l)
	} else {
		*queue = append(*queue, l)
	}
}

// leavePlace gives the place of a lane that does not need it to the one that has
// waited longest.
func (s *session) leavePlace(l *lane) {
	p := l.p
	if !l.placed || l.queued || l.out > 0 {
		return
	}
	l.placed = false
	p.placed--
	for len(p.waiting) > 0 && p.placed < s.maxInFlight {
		next := p.waiting[0]
		p.waiting = p.waiting[1:]
		next.queued = false
		s.queue(next, false)
	}
}

// pick returns a lane of a partition that may hand out its candidate, and takes it
// out of the queue. Since it was put there, that may have changed.
func (s *session) pick(p *partition) *lane {
	for len(p.ready) > 0 {
		l := p.ready[0]
		p.ready = p.ready[1:]
		l.queued = false
		if s.mayGoOn(l) {
			return l
		}
		s.leavePlace(l)
	}
	return nil
}

// stillNext reports whether what is on offer is still what its lane may hand out
// next: one before it may have been nacked meanwhile, or it have turned out that
// nobody keeps the order.
func (s *session) stillNext(e *entry) bool {
	l := e.lane
	if len(l.redo) > 0 && l.redo[0].number < e.number {
		return false
	}
	return l.out == 1 || s.orderIsKept()
}

// What is known of who handles the messages: subscription.keeping.
const (
	keptUnknown int32 = iota
	keptInOrder
	keptByNobody
)

// orderIsKept reports whether messages may be handed out ahead.
func (s *subscription) orderIsKept() bool { return s.keeping.Load() == keptInOrder }

// turn is what an entry's message says of its turn. nil: it is in no line.
func (s *session) turn(e *entry) *delivery.Turn {
	if e.lane.line == 0 {
		return nil
	}
	t := &delivery.Turn{Line: e.lane.line, Number: e.number, Before: e.before}
	if s.ahead > 1 {
		attempt := e.tries + 1
		t.Kept = func() { s.kept(e, attempt) }
	}
	return t
}

// kept takes note that a message waits for its turn. If it is the first that does,
// others may be handed out ahead.
func (s *session) kept(e *entry, attempt uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.tries+1 == attempt {
		e.kept = true
	}
	if !s.keeping.CompareAndSwap(keptUnknown, keptInOrder) {
		return
	}
	for _, p := range s.order {
		for _, l := range p.lanes {
			s.queue(l, false)
		}
	}
	s.wakeUp()
}

// checkKept is called when a message was acknowledged. Whoever does that without
// having waited for the message's turn would not wait with others either. A nack
// tells nothing: what fails early has no effect, and comes again.
func (s *session) checkKept(e *entry) {
	if s.ahead == 1 || e.lane.line == 0 {
		return
	}
	s.mu.Lock()
	kept := e.kept
	s.mu.Unlock()
	if kept || s.keeping.Swap(keptByNobody) == keptByNobody {
		return
	}
	s.log.Error("oncemill: kafka: Subscriber.Ahead is set, and a message was acknowledged by a handler that does not keep the order of what is handed out ahead; "+
		"from now on each message waits until the one before it is acknowledged: put a consumers.Stack onto the router whose Once.Inbox has a Batch above 1, or leave Ahead out",
		"topic", s.topic, "partition", e.record.Partition, "offset", e.record.Offset)
}
