package oncemill

import (
	"context"
	"fmt"
	"time"

	"github.com/oncemill/oncemill/internal/delivery"
	"github.com/oncemill/oncemill/internal/txn"
)

// Group commit: calls of Once that wait at the same time share a transaction. This file
// has who waits for what, lane.go whose turn it is, batchrun.go one batch, batchfail.go how
// it ends otherwise, and batchsql.go its statements.
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

	// Of the batch that it is in, touched by whoever runs or commits that.
	behind      *member // its predecessor, if that is in the same batch; it must have taken effect
	tx          *txState
	handle      *txn.Handle
	ended       bool  // its caller was told the end
	took        bool  // its effect is in the transaction, or was there before
	verdict     *told // what its claim has shown; nil: it is to run
	unconfirmed bool  // see settledClaim

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
	in.startLane()
	return nil
}

// await waits until a member is told the end, and runs its function in between.
func (in *Inbox) await(m *member, before <-chan struct{}) told {
	ended, played := m.ctx.Done(), 0
	var failed error // of the last time that it was played
	for {
		select {
		case t := <-m.tell:
			if !t.turn {
				return t
			}
			failed = in.play(m)
			played++
		case <-before:
			before = nil
			if m.ctx.Err() != nil {
				continue // it is not for this process any more
			}
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
			case gone && failed != nil: // so it is not committed
				return told{err: m.d.handlerFailed(drainedOr(m.work, failed))}
			case gone:
				return told{err: m.d.failed(OpCommit, fmt.Errorf("no answer to COMMIT, the next delivery will tell its outcome: %w", context.Cause(m.work)))}
			case turns > played: // the lane waits for it
				if t := <-m.tell; !t.turn {
					return t
				}
				failed = in.play(m)
				played++
			}
			ended = m.work.Done()
		}
	}
}

// play calls a member's function, and answers the lane in any case. A panic is not let
// through: the function runs again alone, where it is. With runtime.Goexit nobody waits
// for the end any more.
func (in *Inbox) play(m *member) (err error) {
	err = errGone
	defer func() {
		if panicked := recover(); panicked != nil {
			m.panicked = true
			err = fmt.Errorf("handler panicked: %v", panicked)
		}
		m.answer <- err
	}()
	return runLent(txn.With(m.work, m.handle), m.tx, m.fn)
}

// enter makes a member one of a batch.
func (m *member) enter(b *batch) {
	m.batch, m.state = b, chosen
	b.atOnce = b.atOnce || m.atOnce
	m.ended, m.took, m.panicked, m.verdict, m.unconfirmed = false, false, false, nil, false
}
