package oncemill

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// How a batch ends that is not committed, and what its members are told.

// turnFailed ends a batch one of whose functions has failed.
func (b *batch) turnFailed(m *member, err error) {
	b.t.spoilt = b.pending.hasFailed() // statements that it has prepared are still there
	rollback := b.t.rollback(b.ctx)
	blamed := b.in.blame(m.work, m.tx, rollback, err)
	lost := errors.Is(blamed, ErrUnavailable) && (rollback != nil || m.tx.trouble != nil)
	culprit := b.brokenBy()
	switch {
	case errors.Is(err, errGone):
		b.in.lane.remember(m.d, true)
		b.tell(m, told{err: m.d.handlerFailed(err)})
	case b.pending.hasFailed() && context.Cause(m.work) == nil:
		if rollback != nil {
			b.in.lane.remember(m.d, true) // as below
		}
		b.flushFailed(rollback)
	case m.tx.shared.refused != "":
		b.refused(m)
	case m.tx.shared.asked:
	case context.Cause(m.work) != nil:
		b.tell(m, told{err: m.d.handlerFailed(blamed)})
	case sqlState(blamed) == "40P01":
		b.in.lane.takeTurns()
		m.tries++
	case lost && culprit != nil:
		b.alone([]*member{culprit})
	case lost:
		b.in.lane.remember(m.d, true) // it may be what breaks connections
		b.tell(m, told{err: m.d.handlerFailed(blamed)})
		b.failAll(OpHandler, fmt.Errorf("%w: while another message of the batch was handled: %w", ErrUnavailable, err))
	default:
		b.failedOne(m, blamed)
	}
	b.again(b.members)
}

// flushFailed is for an error of what was deferred, whatever the handler made of it that
// had it sent. Whose it was, the next batch will see.
func (b *batch) flushFailed(rollback error) {
	err := drainedOr(b.ctx, b.pending.err)
	state := sqlState(err)
	switch {
	case state == "40P01", state == "55P03" && b.hasty:
		b.in.lane.takeTurns()
	case !b.pending.gaveUp && (state == "" || unavailableState(state) || rollback != nil):
		b.failAll(OpHandler, fmt.Errorf("%w: %w", ErrUnavailable, err))
	case len(b.members) == 1:
		b.alone(b.members)
	default:
		for _, m := range b.members {
			m.atOnce = true
		}
	}
}

// failedOne is for the failure of one member. What it came of its own transaction will
// tell, unless this was as good as that. If it found the transaction aborted, that may have been
// the one before it.
func (b *batch) failedOne(m *member, err error) {
	if len(b.members) == 1 && !m.panicked {
		b.tell(m, told{err: m.d.handlerFailed(err)})
		return
	}
	b.in.lane.shrink(len(b.members))
	for _, m := range b.members {
		m.atOnce = false
	}
	suspects := []*member{m}
	if n := len(b.ran); n > 0 && sqlState(err) == "25P02" {
		suspects = append(suspects, b.ran[n-1])
	}
	b.alone(suspects)
}

// refused has a member run alone that wants to do what would not be safe here.
func (b *batch) refused(m *member) {
	what := m.tx.shared.refused
	if b.in.lane.neverAgain(m.d.consumer) {
		b.in.Logger.WarnContext(m.ctx, "oncemill: this consumer's messages are not handled in batches: its handler does what would reach other messages of its batch", "consumer", m.d.consumer, "what", what)
	}
	b.alone([]*member{m})
}

// brokenBy finds the member whose query's context has ended while its rows were open: with
// that, the driver breaks the connection.
func (b *batch) brokenBy() *member {
	for _, m := range b.ran {
		if m.tx.open != nil && m.tx.open.Err() != nil {
			return m
		}
	}
	return nil
}

func (b *batch) claimFailed(err error) {
	switch state := sqlState(err); {
	case state == "55P03", state == "57014" && b.ctx.Err() == nil:
		// Somebody else holds one of the keys: each will find out alone if it is its own.
		b.alone(b.members)
	case state == "40P01":
		b.in.lane.takeTurns()
		b.again(b.members)
	case strings.HasPrefix(state, "22"), strings.HasPrefix(state, "23"), strings.HasPrefix(state, "54"):
		b.alone(b.members) // what one of them says cannot be stored
	default:
		b.failAll(OpClaim, err)
	}
}

// endFailed is for what fails when all functions have returned. If Postgres has said why,
// nothing is committed, and each will find out alone if it was its own doing. Else the
// connection is lost, and after a COMMIT nobody knows.
func (b *batch) endFailed(op Op, err error) {
	if op != OpCommit {
		_ = b.t.rollback(b.ctx)
	}
	state := sqlState(err)
	switch culprit := b.brokenBy(); {
	case state == "40P01":
		b.in.lane.takeTurns()
	case errors.Is(err, ErrTxAborted), state != "" && !unavailableState(state):
		b.in.lane.shrink(len(b.members))
		b.alone(b.ran)
	case culprit != nil && op == OpHandler:
		b.alone([]*member{culprit})
	default:
		b.again(b.dropped) // their claims are gone in any case
		b.failAll(op, drainedOr(b.ctx, err))
	}
	b.again(b.members)
}

// tell tells a member its end.
func (b *batch) tell(m *member, t told) {
	if !m.ended {
		m.ended = true
		b.in.lane.release(m)
		m.tell <- t // there is room: it has taken the last one
	}
}

// alone has members run in transactions of their own.
func (b *batch) alone(members []*member) {
	for _, m := range members {
		if !m.ended {
			b.in.lane.remember(m.d, true)
		}
		b.tell(m, told{alone: true})
	}
}

// again puts those back who were not told their end, but for those who were given back or
// have tried too often.
func (b *batch) again(members []*member) {
	var back []*member
	for _, m := range members {
		switch {
		case m.ended:
		case m.ctx.Err() != nil:
			b.tell(m, told{err: m.d.failed(OpKey, m.ctx.Err())})
		case m.tries >= mostTries:
			b.tell(m, told{alone: true})
		default:
			if m.took {
				m.tries++
			}
			m.ended = true // as far as this batch is concerned
			b.in.lane.release(m)
			back = append(back, m)
		}
	}
	b.in.putBack(back)
}

// failAll tells all the same. Those who have prepared statements of their own run alone the
// next time: with rows of theirs left open, the connection is of no use to others.
func (b *batch) failAll(op Op, err error) {
	for _, m := range b.ran {
		if len(m.tx.shared.stmts) > 0 {
			b.in.lane.remember(m.d, true)
		}
	}
	for _, m := range b.members {
		if !m.ended {
			b.tell(m, told{err: m.d.failed(op, drainedOr(b.ctx, err))})
		}
	}
}
