package oncemill

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/oncemill/oncemill/internal/delivery"
	"github.com/oncemill/oncemill/internal/txn"
)

// Group commit: calls of Once that wait at the same time share a transaction. This file
// has who waits and whose turn it is, batchrun.go one batch, and batchsql.go its statements.
//
// A call of Once is a member. Its function runs in the goroutine of its caller, which
// meanwhile waits for what the lane tells it:
//
//	held     its predecessor in the line has not been acknowledged
//	queued   it may run
//	chosen   it is in the batch under way, and its turn has not come
//	begun    its function was called, or has returned
//	left     its caller has gone
//
//	held → queued         when the predecessor was acknowledged
//	held, queued → chosen by the lane; from held only directly behind its predecessor
//	chosen → begun        when its turn comes
//	chosen → held, queued when the batch ends before its turn comes
//	begun → held, queued  when the batch was rolled back through nobody's or another's fault
//	any → left            when its context ends, begun only after DrainTimeout
//
// It ends with what its caller is told: that the transaction was committed, that the
// message is a duplicate, an error, or to run alone, in a transaction of its own. The last
// is for one that fails: why it does, only its own transaction can tell.
type member struct {
	d      *delivered
	fn     func(context.Context, Tx) error
	ctx    context.Context // the caller's
	work   context.Context // its function's; ends later
	turn   *delivery.Turn  // nil: in no order
	tell   chan told
	answer chan error // what the function has returned

	// Guarded by lane.mu.
	state       memberState
	open        bool   // it need not wait for its predecessor any more
	turns       int    // how often it has begun
	batch       *batch // whose end it waits for
	leaveFlight func() // nil: another delivery of the key may be under way

	// Of the batch that it is in, touched by the lane alone.
	behind  *member // its predecessor, if that is in the same batch; it must have taken effect
	tx      *txState
	handle  *txn.Handle
	ended   bool  // its caller was told the end
	took    bool  // its effect is in the transaction, or was there before
	verdict *told // what its claim has shown; nil: it is to run

	atOnce   bool // each statement is to be sent at once
	panicked bool // its function has, instead of returning
	tries    int  // batches in which it ran, and that were rolled back
}

type memberState int

const (
	held memberState = iota
	queued
	chosen
	begun
	left
)

// told is what the lane tells a member: that its turn has come, or how it has ended.
type told struct {
	turn      bool
	alone     bool
	duplicate bool
	err       *Error
}

const (
	// mostTries is in how many batches a member runs in vain before it runs alone.
	mostTries = 16

	// mostFailed is how many keys are remembered that had failed in a batch.
	mostFailed = 4096

	defaultBatchTime = 500 * time.Millisecond
	mostBatch        = 10_000
)

// A lane is the queue of members, and who works it off: one batch at a time.
type lane struct {
	mu      sync.Mutex
	queue   []*member         // may run, in this order
	lines   map[place]*member // held
	running bool
	size    int // of the next batch; 0: Inbox.Batch

	last chan struct{} // closed when the last batch has ended

	failed map[flight]bool // keys that run alone, since they failed in a batch
	single map[string]bool // consumers whose messages run alone, since they use Raw

	turns     time.Time     // until then batches of several processes take turns
	turnsTime time.Duration // for how long the last time
}

// place is one in a line of messages.
type place struct {
	consumer     string
	line, number uint64
}

func (m *member) place() place { return place{m.d.consumer, m.turn.Line, m.turn.Number} }

func (m *member) flight() flight { return flight{m.d.consumer, m.d.stored} }

// join has fn run in a batch, and waits for the end.
func (in *Inbox) join(ctx context.Context, d *delivered, turn *delivery.Turn, fn func(context.Context, Tx) error) told {
	m := &member{d: d, fn: fn, ctx: ctx, turn: turn, tell: make(chan told, 2), answer: make(chan error, 1)}
	work, stop := in.detach(ctx)
	defer stop()
	m.work = work
	defer in.lane.dismiss(m)
	before := m.before()
	if before == nil {
		if err := in.admit(m); err != nil {
			return told{err: err}
		}
	} else {
		in.lane.hold(m)
	}
	return in.await(m, before)
}

// before returns what is closed when a member need not wait for its predecessor. nil: it
// need not.
func (m *member) before() <-chan struct{} {
	if m.turn == nil {
		return nil
	}
	return m.turn.Before
}

// admit queues a member that may run, once no other delivery of its key is under way.
func (in *Inbox) admit(m *member) *Error {
	leave, err := in.flights.enter(m.ctx, m.flight(), in.LockWait)
	if err != nil {
		return m.d.failed(OpKey, err)
	}
	l := &in.lane
	l.mu.Lock()
	defer l.mu.Unlock()
	m.leaveFlight, m.open, m.state = leave, true, queued
	l.queue = append(l.queue, m)
	if !l.running {
		l.running = true
		go in.runBatches()
	}
	return nil
}

// await waits until a member is told the end, and runs its function in between.
func (in *Inbox) await(m *member, before <-chan struct{}) told {
	ended, played := m.ctx.Done(), 0
	for {
		select {
		case t := <-m.tell:
			if !t.turn {
				return t
			}
			in.play(m)
			played++
		case <-before:
			before = nil
			if in.lane.opened(m) {
				if err := in.admit(m); err != nil {
					return told{err: err}
				}
			}
		case <-ended:
			gone, turns := in.lane.leave(m, played)
			switch {
			case gone && turns == 0:
				return told{err: m.d.failed(OpKey, m.ctx.Err())}
			case gone:
				return told{err: m.d.failed(OpCommit, fmt.Errorf("no answer to COMMIT, the next delivery will tell its outcome: %w", context.Cause(m.work)))}
			case turns > played: // the lane waits for it
				if t := <-m.tell; !t.turn {
					return t
				}
				in.play(m)
				played++
			}
			ended = m.work.Done()
		}
	}
}

// play calls a member's function, and answers the lane in any case. A panic is not let
// through: the function runs again alone, where it is. With runtime.Goexit nobody waits
// for the end any more.
func (in *Inbox) play(m *member) {
	err := errGone
	defer func() {
		if panicked := recover(); panicked != nil {
			m.panicked = true
			err = fmt.Errorf("handler panicked: %v", panicked)
		}
		m.answer <- err
	}()
	err = runLent(txn.With(m.work, m.handle), m.tx, m.fn)
}

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
	size := in.Batch
	if l.size > 0 {
		size = min(size, l.size)
	}
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

// enter makes a member one of a batch.
func (m *member) enter(b *batch) {
	m.batch, m.state = b, chosen
	b.atOnce = b.atOnce || m.atOnce
	m.ended, m.took, m.panicked, m.verdict = false, false, false, nil
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

// again puts members back, to go first in the next batch.
func (l *lane) again(members []*member) {
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
	if l.size > 0 && n >= l.size {
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

const leastTurnsTime, mostTurnsTime = 10 * time.Second, 10 * time.Minute

// takeTurns has the batches of all processes take turns for a while, since they have got
// into a deadlock. The while is doubled each time that it turns out to have been too
// short: finding a deadlock takes Postgres a second.
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
