package oncemill

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"github.com/oncemill/oncemill/internal/txn"
)

// A batch is one transaction of several members, from BEGIN to what each is told:
//
//	begin, claim    all keys in one statement; duplicates are told so at once, or with a
//	                synchronous standby after the commit: see unconfirmed
//	turns           each member's function, one after another
//	flush           what these have written, in one text, where that was deferred
//	unclaim         the claims of members whose turn did not come
//	late            the outbox rows of all in one statement
//	commit          then they are told; the next batch has begun meanwhile
//
// A claim is committed only if its member's function has returned nil. Where something
// fails, all is rolled back, and those who have nothing to do with it go first in the next
// batch.
type batch struct {
	in      *Inbox
	members []*member
	ctx     context.Context // ends when no caller waits any more
	cancel  context.CancelCauseFunc
	callers int  // who wait, guarded by lane.mu
	atOnce  bool // each statement is sent at once, to see which one fails
	start   time.Time
	begun   time.Time // the first turn

	stmts     batchStatements
	encoding  string // of what the client sends
	hasty     bool   // what is deferred waits for rows only briefly
	t         *transaction
	watched   bool // see watchesTransactions
	own       txStatements
	pending   *deferred // nil: each statement is sent at once
	late      *txn.Late
	ran       []*member // whose functions have returned nil, in their order
	judged    []*member // who are told what their claims have shown once that is done
	dropped   []*member // whose claims are to be deleted
	committed int
	size      int           // the number of members at first
	last      chan struct{} // closed when the batch before this one has ended; nil: there was none
	ended     chan struct{} // the same of this one
}

// errGone stands for a handler that has ended its goroutine, or that is waited for no longer.
var errGone = errors.New("handler did not return")

// run works until the batch has ended, or is about to commit: the next one begins while it
// does. Those two get into a deadlock only where deferred constraints wait for rows in the
// COMMIT; like any other, Postgres finds it.
func (b *batch) run() {
	committing := false
	defer func() {
		if !committing {
			b.end()
		}
	}()
	defer b.catch()
	if !b.transact() {
		return
	}
	b.awaitLast() // so that there are two at most
	committing = true
	go func() {
		defer b.end()
		defer b.catch()
		b.commit()
	}()
}

// catch is for a driver, or an Observer, that panics: callers wait in other goroutines.
func (b *batch) catch() {
	if panicked := recover(); panicked != nil {
		b.in.Logger.Error(fmt.Sprintf("oncemill: a batch panicked: %v", panicked), "stack", string(debug.Stack()))
		b.failAll(OpCommit, fmt.Errorf("%w: panic: %v", ErrUnavailable, panicked))
	}
}

func (b *batch) end() {
	defer close(b.ended)
	defer b.cancel(nil)
	defer b.catch()
	b.awaitLast()
	if b.in.Observer.Batch != nil {
		b.in.Observer.Batch(b.committed, b.size, time.Since(b.start))
	}
}

// awaitLast waits until the batch before this one has ended.
func (b *batch) awaitLast() {
	if b.last == nil {
		return
	}
	select {
	case <-b.last:
	case <-b.ctx.Done():
	}
}

// transact runs the members. It reports whether there is something to commit.
func (b *batch) transact() (ready bool) {
	if !b.beginAndClaim() {
		return false
	}
	defer func() {
		if !ready {
			b.t.close(b.ctx)
		}
	}()
	for _, m := range b.members {
		if b.pending.overdue() && !b.flush() {
			return false
		}
		switch {
		case m.ended:
		case m.verdict != nil:
			b.judge(m)
		case !b.mayRun(m):
			b.dropped = append(b.dropped, m)
		default:
			if err := b.turn(m); err != nil {
				b.turnFailed(m, err)
				return false
			}
		}
	}
	commits := len(b.ran)+len(b.judged) > 0
	if !commits {
		_ = b.t.rollback(b.ctx)
	} else if !b.finish() {
		return false
	}
	b.adapt()
	b.again(b.withoutRan())
	return commits
}

// withoutRan returns the members that are not committed, who are none of this batch any more.
func (b *batch) withoutRan() (others []*member) {
	for _, m := range b.members {
		if !m.took && !slices.Contains(b.judged, m) {
			others = append(others, m)
		}
	}
	b.members, b.dropped = slices.Concat(b.ran, b.judged), nil
	return others
}

// judge tells a member what its claim has shown, once that is confirmed and the one before
// it in its line has taken effect for good: with that, the one behind it may run.
func (b *batch) judge(m *member) {
	if m.behind != nil && !m.behind.took {
		return
	}
	m.took = m.verdict.duplicate
	if m.unconfirmed || m.behind != nil && !m.behind.ended {
		b.judged = append(b.judged, m)
	} else {
		b.tell(m, *m.verdict)
	}
}

// adapt learns how large a batch should be: small enough to end in time.
func (b *batch) adapt() {
	if len(b.dropped) > 0 && len(b.ran) > 0 && b.isLate() {
		b.in.lane.shrink(2 * len(b.ran))
	} else {
		b.in.lane.grow(len(b.members))
	}
}

// beginAndClaim begins the transaction and claims the keys in it. It reports whether there
// is somebody whose function may run.
func (b *batch) beginAndClaim() (ok bool) {
	var err error
	if b.stmts, err = b.in.prepareBatch(b.ctx); err != nil {
		b.failAll(OpClaim, err)
		return false
	}
	if b.t, err = begin(b.ctx, b.in.DB); err != nil {
		b.failAll(OpBegin, err)
		return false
	}
	if err = b.claim(); err != nil {
		b.t.spoilt = isSpoilt(err)
		_ = b.t.rollback(b.ctx)
		b.claimFailed(err)
		return false
	}
	b.begun, b.watched = time.Now(), watchesTransactions(b.in.DB)
	if b.in.defers() && !b.atOnce && b.encoding == "UTF8" { // as is quoted for
		b.pending = &deferred{tx: b.t.tx, sent: b.begun, patience: b.in.IdleTimeout / 64, hasty: b.hasty}
	}
	b.late, b.own = new(txn.Late), txStatements{all: &b.in.sql, tx: b.t.tx}
	return true
}

// mayRun reports whether a member's turn comes: its caller waits, there is time, and the
// one before it in its line has taken effect.
func (b *batch) mayRun(m *member) bool {
	if m.behind != nil && !m.behind.took || len(b.ran) > 0 && b.isLate() || m.ctx.Err() != nil {
		return false
	}
	return b.in.lane.begin(m)
}

// isLate looks at IdleTimeout too: where everything is deferred, nothing is sent meanwhile.
func (b *batch) isLate() bool {
	return time.Since(b.begun) > min(b.in.BatchTime, b.in.IdleTimeout/2)
}

// turn has a member's function run, in the goroutine of its caller.
func (b *batch) turn(m *member) error {
	s := &txState{tx: b.t.tx, conn: b.t.conn, at: time.Now(), shared: &share{pending: b.pending}, stmts: &b.own}
	if b.watched {
		s.watched = m.work.Done()
	}
	m.tx, m.handle = s, &txn.Handle{Executor: Tx{s}, Late: b.late, Enter: s.enter}
	m.tell <- told{turn: true}
	err := b.awaitAnswer(m)
	if errors.Is(err, errGone) {
		return err
	}
	open := s.shared.takeBack()
	switch {
	case err != nil:
		return err
	case s.shared.refused != "":
		return errShared
	case s.shared.asked:
		return errAsked
	case s.failed: // and the handler did not care
		return ErrTxAborted
	case time.Since(s.at) >= b.in.IdleTimeout: // it would be the next one's fault
		return b.in.idled(errors.New("handler returned after that"))
	case open && s.open != nil && s.open.Err() != nil:
		if _, err := b.t.tx.ExecContext(b.ctx, `SELECT 1`); err != nil {
			return fmt.Errorf("the context of the handler's last query ended before its rows were closed, and broke the connection: %v", err)
		}
	}
	m.took = true
	b.ran = append(b.ran, m)
	return nil
}

// awaitAnswer waits for a function to return. One that does nothing for longer than
// IdleTimeout has lost the transaction anyway, and must not hold up all others.
func (b *batch) awaitAnswer(m *member) error {
	idle := time.NewTimer(b.in.IdleTimeout + time.Second)
	defer idle.Stop()
	working := m.tx.watched
	for {
		select {
		case err := <-m.answer:
			return err
		case <-working:
			working = nil
			b.t.breakOff(m.tx)
			continue
		case <-idle.C:
		}
		wait, ended := m.tx.abandon(b.in.IdleTimeout)
		if ended {
			return b.in.idled(errGone)
		}
		idle.Reset(wait + time.Second)
	}
}

// flush sends what is pending. It reports whether the batch can go on.
func (b *batch) flush() (ok bool) {
	err := answer(b.ctx, func() error { return b.pending.flush(b.ctx) })
	switch {
	case err == nil:
		return true
	case errors.Is(err, errSilent): // and nobody waits
		b.endFailed(OpHandler, err)
		return false
	}
	b.t.spoilt = true
	b.flushFailed(b.t.rollback(b.ctx))
	b.again(b.members)
	return false
}

// finish deletes what must not be committed, and writes what was left to the end.
func (b *batch) finish() (ok bool) {
	if !b.flush() {
		return false
	}
	if err := b.unclaim(); err != nil {
		b.endFailed(OpHandler, err)
		return false
	}
	s := &txState{tx: b.t.tx, conn: b.t.conn, at: time.Now(), stmts: &b.own}
	write := func() error { return b.late.Write(b.ctx, &txn.Handle{Executor: Tx{s}}) }
	if err := answer(b.ctx, write); err != nil {
		b.endFailed(OpHandler, err)
		return false
	}
	return true
}

// commit commits, and tells.
func (b *batch) commit() {
	if err := b.t.commit(b.ctx); err != nil {
		b.endFailed(OpCommit, err)
		return
	}
	b.committed = len(b.ran)
	for _, m := range b.ran {
		m.handle.Committed()
		b.tell(m, told{})
	}
	for _, m := range b.judged {
		b.tell(m, *m.verdict)
	}
}
