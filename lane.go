package oncemill

import (
	"context"
	"sync"
	"time"
)

// A lane is the queue of members, and who works it off: one batch at a time, but for the
// one before, which may still be committing.
type lane struct {
	mu      sync.Mutex
	queue   []*member         // may run, in this order
	lines   map[place]*member // held
	running bool
	size    int // of the next batch, up to Inbox.Batch; 0: firstBatch

	last chan struct{} // closed when the last batch has ended

	failed map[flight]bool // keys that run alone, since they failed in a batch
	single map[string]bool // consumers whose messages run alone; see share

	turns     time.Time     // until then batches of several processes take turns
	turnsTime time.Duration // for how long the last time
}

// firstBatch is how large the first batch is: what handlers write is not deferred yet, and
// if that of several processes overlaps, Postgres finds the deadlock after a second.
const firstBatch = 8

// place is one in a line of messages.
type place struct {
	consumer     string
	line, number uint64
}

const leastTurnsTime, mostTurnsTime = 10 * time.Second, 10 * time.Minute

// hold keeps a member that waits for its predecessor. The lane finds it there when that is
// in a batch.
func (l *lane) hold(m *member) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holdHere(m)
}

func (l *lane) holdHere(m *member) {
	if l.lines == nil {
		l.lines = make(map[place]*member)
	}
	m.state = held
	l.lines[m.place()] = m
}

// opened notes that a member need not wait any more. It reports whether it is to be
// admitted now, because it is in no batch.
func (l *lane) opened(m *member) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	m.open = true
	if m.state != held {
		return false
	}
	l.unhold(m)
	return true
}

func (l *lane) unhold(m *member) {
	if m.turn != nil && l.lines[m.place()] == m {
		delete(l.lines, m.place())
	}
}

// leave takes a member away whose caller goes. One that has begun stays until its own
// context has ended, and its function has returned as often as its turn has come: then
// nobody knows whether it will be committed.
func (l *lane) leave(m *member, played int) (gone bool, turns int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m.state == begun && (m.turns > played || m.work.Err() == nil) {
		return false, m.turns
	}
	if m.state == begun {
		turns = m.turns
	}
	l.releaseHere(m)
	m.state = left // the queue's are skipped
	l.unhold(m)
	return true, turns
}

// dismiss forgets a member whose caller returns.
func (l *lane) dismiss(m *member) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m.state = left
	l.unhold(m)
	l.land(m)
}

// land lets the next delivery of the key through.
func (l *lane) land(m *member) {
	if m.leaveFlight != nil {
		m.leaveFlight()
		m.leaveFlight = nil
	}
}

// runBatches runs one batch after another until nobody waits any more.
func (in *Inbox) runBatches() {
	for {
		b := in.nextBatch()
		if b == nil {
			return
		}
		b.run()
	}
}

// nextBatch takes from the queue, and from those who are held what is directly behind.
// nil: there is nothing, and the lane stops.
func (in *Inbox) nextBatch() *batch {
	l := &in.lane
	l.mu.Lock()
	defer l.mu.Unlock()
	b := &batch{in: in, start: time.Now()}
	if l.size == 0 {
		l.size = firstBatch
	}
	size := min(in.Batch, l.size)
	for len(l.queue) > 0 && len(b.members) < size {
		m := l.queue[0]
		l.queue[0] = nil
		l.queue = l.queue[1:]
		if m.state != queued {
			continue // it has left
		}
		if l.single[m.d.consumer] {
			m.state = begun
			m.tell <- told{alone: true}
			continue
		}
		m.behind = nil
		for m != nil {
			m.enter(b)
			b.members = append(b.members, m)
			if len(b.members) == size {
				break
			}
			m = in.successor(m)
		}
	}
	l.running = len(b.members) > 0
	if !l.running {
		return nil
	}
	b.callers, b.size = len(b.members), len(b.members)
	b.last, b.ended = l.last, make(chan struct{})
	l.last = b.ended
	b.ctx, b.cancel = context.WithCancelCause(context.Background())
	return b
}

// release notes that a member does not wait for its batch any more. When nobody does, the
// batch is given up.
func (l *lane) release(m *member) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.releaseHere(m)
}

func (l *lane) releaseHere(m *member) {
	b := m.batch
	if b == nil {
		return
	}
	m.batch = nil
	if b.callers--; b.callers == 0 {
		b.cancel(context.Cause(m.work))
	}
}

// successor returns the member that may run directly behind another one, nil for none. The
// caller holds lane.mu.
func (in *Inbox) successor(m *member) *member {
	if m.turn == nil {
		return nil
	}
	l := &in.lane
	next := l.lines[place{m.d.consumer, m.turn.Line, m.turn.Number + 1}]
	if next == nil || l.failed[next.flight()] {
		return nil
	}
	leave, ok := in.flights.tryEnter(next.flight())
	if !ok {
		return nil // it will wait for that when its turn comes
	}
	l.unhold(next)
	next.leaveFlight, next.behind = leave, m
	return next
}

// begin reports whether a member's turn may come: its caller is still there.
func (l *lane) begin(m *member) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m.state != chosen {
		return false
	}
	m.state = begun
	m.turns++
	return true
}

// putBack puts members back, to go first in the next batch.
func (in *Inbox) putBack(members []*member) {
	l := &in.lane
	l.mu.Lock()
	defer l.mu.Unlock()
	var first []*member
	for _, m := range members {
		switch {
		case m.state == left:
		case m.turn != nil && !m.open:
			l.land(m)
			l.holdHere(m)
		default:
			m.state = queued
			first = append(first, m)
		}
	}
	l.queue = append(first, l.queue...)
	if len(first) > 0 {
		in.startLane() // it may have stopped while the batch was committed
	}
}

// startLane has the queue worked off. The caller holds lane.mu.
func (in *Inbox) startLane() {
	if !in.lane.running {
		in.lane.running = true
		go in.runBatches()
	}
}

// shrink makes the next batch smaller than one of n members that failed, and grow the next
// one larger than one of n that did not. Halving, and growing by a quarter, it stays where
// about one batch in four fails.
func (l *lane) shrink(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.size = max(n/2, 1)
}

func (l *lane) grow(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n >= l.size {
		l.size += l.size/4 + 1
	}
}

// runsAlone reports whether a message is known not to do in a batch.
func (l *lane) runsAlone(d *delivered) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.single[d.consumer] || l.failed[flight{d.consumer, d.stored}]
}

// remember notes that a message has failed in a batch, until it has succeeded alone.
func (l *lane) remember(d *delivered, failed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := flight{d.consumer, d.stored}
	if !failed {
		delete(l.failed, f)
		return
	}
	if l.failed == nil || len(l.failed) >= mostFailed {
		l.failed = make(map[flight]bool) // forgetting costs no more than a batch for each
	}
	l.failed[f] = true
}

// neverAgain has all messages of a consumer run alone. It reports whether that is news.
func (l *lane) neverAgain(consumer string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.single[consumer] {
		return false
	}
	if l.single == nil {
		l.single = make(map[string]bool)
	}
	l.single[consumer] = true
	return true
}

// takeTurns has the batches of all processes take turns for a while, since they have got
// into a deadlock, or would. The while is doubled each time that it turns out to have been
// too short: finding a deadlock takes Postgres a second.
func (l *lane) takeTurns() {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if now.Before(l.turns) {
		return // one who takes no turns was in it
	}
	if now.Sub(l.turns) > l.turnsTime {
		l.turnsTime = 0 // it went well for as long
	}
	l.turnsTime = min(max(2*l.turnsTime, leastTurnsTime), mostTurnsTime)
	l.turns = now.Add(l.turnsTime)
}

func (l *lane) takesTurns() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Now().Before(l.turns)
}
