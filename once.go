package oncemill

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/oncemill/oncemill/internal/delivery"
	"github.com/oncemill/oncemill/internal/txn"
)

// delivered is one delivery of a message to a consumer.
type delivered struct {
	consumer string
	key      string // as the caller gave it
	stored   string // as the table has it
	opts     ClaimOptions
	ownNonce bool // opts.Nonce is not the caller's
}

// repeatable reports whether the call may be made again elsewhere, and find what this one
// has claimed: then it is not to be given back.
func (d *delivered) repeatable() bool { return d.opts.Nonce != nil && !d.ownNonce }

func (d *delivered) outcome() Outcome {
	if d.opts.Outcome == "" {
		return Settled
	}
	return d.opts.Outcome
}

// failed is for what went wrong in Oncemill's own statements. An error in which
// Postgres does not speak, and that was not made here, is one of the connection:
// not all that drivers say of those can be told by type. A server that does not
// even begin a transaction may be a replica by now.
func (d *delivered) failed(op Op, err error) *Error {
	state := sqlState(err)
	switch {
	case op == OpKey || isOwn(err):
	case state == "42P01" || state == "3F000":
		err = fmt.Errorf("%w: %w (run `oncemill migrate` on this database)", ErrSchema, err)
	case state == "" || op == OpBegin:
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return d.invalid(op, markUnavailable(err))
}

// invalid is for what a caller has given, and for what failed otherwise.
func (d *delivered) invalid(op Op, err error) *Error {
	e := &Error{Op: op, Consumer: d.consumer, Key: d.key, Err: err}
	var held *heldError
	if errors.As(err, &held) {
		e.Held = held.held
	}
	return e
}

func isOwn(err error) bool {
	for _, own := range []error{
		ErrInFlight, ErrKeyReused, ErrTooOld, ErrUnavailable, ErrDrained, context.Canceled, context.DeadlineExceeded,
		ErrSettled, ErrInDoubt, ErrFenced, ErrLeaseOver,
	} {
		if errors.Is(err, own) {
			return true
		}
	}
	return false
}

// Once runs fn in a transaction in which the key is claimed, and commits both
// together. If the key is claimed already, fn does not run.
//
// nil means that fn's writes are committed, by this call or by an earlier one:
// the message can be acknowledged. After an error nothing of this call is
// committed, with one exception: if the connection breaks during COMMIT, the
// outcome is not known, and the next delivery finds out. Either way the message
// is to be delivered again. Errors are of type *Error.
//
// fn must write through tx, or through what TxFromContext finds in its context,
// and return an error where it wants nothing of it to last. Its context carries
// the values of ctx. When ctx is cancelled, fn may go on for DrainTimeout, and
// does not begin while it still waits for a connection; when ctx runs into its
// deadline, fn's context ends at once. If fn panics, the transaction is rolled
// back and the panic goes on.
func (c *Consumer) Once(ctx context.Context, key string, fn func(ctx context.Context, tx Tx) error) error {
	return c.OnceWith(ctx, key, ClaimOptions{}, fn)
}

// OnceWith is Once with more known about the message.
func (c *Consumer) OnceWith(ctx context.Context, key string, opts ClaimOptions, fn func(ctx context.Context, tx Tx) error) error {
	d := &delivered{consumer: c.name, key: key, stored: storedKey(key), opts: opts}
	err := c.in.once(ctx, d, fn)
	if err == nil {
		return nil
	}
	if c.in.Observer.Failed != nil {
		c.in.Observer.Failed(ctx, err)
	}
	return err
}

func (in *Inbox) once(ctx context.Context, d *delivered, fn func(context.Context, Tx) error) *Error {
	start := time.Now()
	if err := d.enterable(ctx, d.opts.checkOnce()); err != nil {
		return err
	}
	duplicate, err := in.takeEffect(ctx, d, fn)
	switch {
	case err != nil:
		return err
	case duplicate && in.Observer.Duplicate != nil:
		in.Observer.Duplicate(ctx, d.consumer, d.key)
	case !duplicate && in.Observer.Committed != nil:
		in.Observer.Committed(ctx, d.consumer, d.key, time.Since(start))
	}
	return nil
}

// takeEffect handles a message together with others, or alone.
func (in *Inbox) takeEffect(ctx context.Context, d *delivered, fn func(context.Context, Tx) error) (duplicate bool, err *Error) {
	if in.Batch <= 1 {
		return in.onceAlone(ctx, d, fn)
	}
	info, _ := delivery.From(ctx)
	if info.Turn != nil && info.Turn.Kept != nil {
		info.Turn.Kept()
	}
	if !in.lane.runsAlone(d) {
		if t := in.join(ctx, d, info.Turn, fn); !t.alone {
			return t.duplicate, t.err
		}
	}
	if info.Turn != nil && info.Turn.Before != nil {
		select {
		case <-info.Turn.Before:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			return false, d.failed(OpKey, ctx.Err())
		}
	}
	duplicate, err = in.onceAlone(ctx, d, fn)
	if err == nil || IsHandlerError(err) {
		in.lane.remember(d, err != nil)
	}
	return duplicate, err
}

// onceAlone handles a message in a transaction of its own.
func (in *Inbox) onceAlone(ctx context.Context, d *delivered, fn func(context.Context, Tx) error) (duplicate bool, failed *Error) {
	leave, err := in.flights.enter(ctx, flight{d.consumer, d.stored}, in.LockWait)
	if err != nil {
		return false, d.failed(OpKey, err)
	}
	defer leave()

	work, stop := in.detach(ctx)
	defer stop()
	// A claim that is gone when it is looked at was purged or removed by hand
	// just then; it can hardly happen twice in a row.
	for range 3 {
		duplicate, gone, err := in.attempt(ctx, work, d, fn)
		if err != nil || !gone {
			return duplicate, err
		}
	}
	return false, d.failed(OpClaim, ErrInFlight)
}

// notBegun is for what came to nothing before a statement about the key was sent: because of
// err, or because the caller has gone, which is no outage.
func (d *delivered) notBegun(caller, work context.Context, op Op, err error) *Error {
	switch gone := caller.Err(); {
	case gone == nil || context.Cause(work) != nil:
		return d.failed(op, drainedOr(work, err))
	case errors.Is(gone, context.Canceled):
		return d.failed(OpKey, gone)
	case errors.Is(err, gone):
		return d.failed(op, err)
	default: // work is about to end as well
		return d.failed(op, fmt.Errorf("%w: %w", gone, err))
	}
}

// enterable checks what needs no database.
func (d *delivered) enterable(ctx context.Context, options error) *Error {
	_, nested := txn.From(ctx)
	switch {
	case d.key == "":
		return d.failed(OpKey, ErrNoKey)
	case options != nil:
		return d.failed(OpKey, options)
	case nested:
		return d.failed(OpKey, ErrNested)
	case ctx.Err() != nil: // given back before it began
		return d.failed(OpKey, ctx.Err())
	}
	return nil
}

// detach returns a context with the values of ctx that outlives it: by
// DrainTimeout when ctx is cancelled, not at all when its deadline passes. A
// router that closes cancels its messages at once, and their handlers should
// still be able to finish.
func (in *Inbox) detach(ctx context.Context) (work context.Context, stop func()) {
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	release := context.AfterFunc(ctx, func() {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			cancel(context.DeadlineExceeded)
			return
		}
		timer := time.NewTimer(in.DrainTimeout)
		defer timer.Stop()
		select {
		case <-timer.C:
			cancel(ErrDrained)
		case <-work.Done():
		}
	})
	return work, func() {
		release()
		cancel(nil)
	}
}

// outlive is like detach, but gives DrainTimeout also after ctx's deadline.
func (in *Inbox) outlive(ctx context.Context) (work context.Context, stop func()) {
	cancelled, cancel := context.WithCancel(context.WithoutCancel(ctx))
	release := context.AfterFunc(ctx, cancel)
	work, stopWork := in.detach(cancelled)
	return work, func() {
		release()
		stopWork()
		cancel()
	}
}

// attempt is one transaction: begin, claim, run, commit. It does not begin when ctx has
// ended. gone means that the key was taken and then free again.
func (in *Inbox) attempt(ctx, work context.Context, d *delivered, fn func(context.Context, Tx) error) (duplicate, gone bool, failed *Error) {
	stmts, err := in.prepareClaim(work)
	if err != nil {
		return false, false, d.failed(OpClaim, drainedOr(work, err))
	}
	t, err := begin(ctx, in.DB)
	if err != nil {
		return false, false, d.notBegun(ctx, work, OpBegin, err)
	}
	defer t.close(work)
	c, err := in.claim(work, t.tx, stmts, d)
	switch {
	case err != nil:
		t.spoilt = isSpoilt(err)
		return false, false, d.failed(OpClaim, drainedOr(work, err))
	case !c.won && c.existing == nil:
		return false, true, nil
	case !c.won:
		return in.findDuplicate(work, t, d, c.existing)
	}
	return false, false, in.runAndCommit(work, t, c.xid, d, fn)
}

// findDuplicate ends the transaction that has found the key claimed.
func (in *Inbox) findDuplicate(work context.Context, t *transaction, d *delivered, c *settledClaim) (duplicate, gone bool, failed *Error) {
	if c.unconfirmed {
		if err := t.commit(work); err != nil {
			return false, false, d.failed(OpClaim, fmt.Errorf("wait until a standby has the claim: %w", err))
		}
	}
	in.noteDead(work, d, c)
	return true, false, nil
}

// noteDead says so if a message is not run because it was given up before.
func (in *Inbox) noteDead(ctx context.Context, d *delivered, c *settledClaim) {
	if c.outcome == Dead && d.outcome() != Dead {
		in.Logger.InfoContext(ctx, "oncemill: message was given up before, and is not run; delete its claim to have it run", "consumer", d.consumer, "key", d.stored)
	}
}

// runAndCommit runs fn in the transaction that holds the claim, and commits.
func (in *Inbox) runAndCommit(work context.Context, t *transaction, xid string, d *delivered, fn func(context.Context, Tx) error) *Error {
	s := &txState{tx: t.tx, conn: t.conn, at: time.Now(), stmts: &txStatements{all: &in.sql, tx: t.tx}}
	if watchesTransactions(in.DB) {
		s.watched = work.Done()
		defer context.AfterFunc(work, func() { t.breakOff(s) })()
	}
	handle := &txn.Handle{Executor: Tx{s}}
	err := runLent(txn.With(work, handle), s, fn)
	if s.unseen {
		if moved := sameTransaction(work, t.tx, xid, err != nil); moved != nil {
			err = errors.Join(moved, err)
		}
	}
	if err != nil {
		return d.handlerFailed(in.blame(work, s, t.rollback(work), err))
	}
	if err := t.commit(work); err != nil {
		if mine := in.blameForCommit(work, s, err); mine != nil {
			return d.handlerFailed(mine)
		}
		return d.failed(OpCommit, err)
	}
	handle.Committed()
	return nil
}

// handlerFailed does not look at the error's kind: a network error in it may be
// from anything that the handler talks to.
func (d *delivered) handlerFailed(err error) *Error {
	return &Error{Op: OpHandler, Consumer: d.consumer, Key: d.key, Err: err}
}

// blame finds out whether a handler that failed is to blame, and marks the error
// where it is not. rollback is non-nil if the connection was lost.
func (in *Inbox) blame(work context.Context, s *txState, rollback, err error) error {
	switch {
	case context.Cause(work) != nil:
		return drainedOr(work, err)
	case s.trouble != nil: // in the last statement, whatever the handler made of it
		return errors.Join(err, s.trouble)
	case rollback == nil || s.gaveUp:
		return err
	case errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled): // in open rows
		return err
	case errors.Is(err, ErrIdle):
		return err
	case time.Since(s.at) >= in.IdleTimeout:
		return in.idled(err)
	case isUnavailable(err): // in rows that were read after the last statement
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}

// blameForCommit returns an error if the handler is to blame for a COMMIT that
// failed.
func (in *Inbox) blameForCommit(work context.Context, s *txState, err error) error {
	switch {
	case errors.Is(err, ErrTxAborted) && s.trouble != nil:
		return errors.Join(err, s.trouble)
	case errors.Is(err, ErrTxAborted):
		return err
	case context.Cause(work) != nil || sqlState(err) != "" && sqlState(err) != "25P03":
		return nil
	case s.open != nil && s.open.Err() != nil:
		return fmt.Errorf("the context of the handler's last query ended before the commit, and broke the connection: %w", err)
	case time.Since(s.at) >= in.IdleTimeout:
		return in.idled(err)
	}
	return nil
}

func (in *Inbox) idled(err error) error {
	return fmt.Errorf("%w (%v): %w", ErrIdle, in.IdleTimeout, err)
}

// runLent runs fn and takes the transaction back from it, also when it panics.
// A panic goes on, unless it comes of a statement that failed through nobody's
// fault: many handlers panic on any error.
func runLent(ctx context.Context, s *txState, fn func(context.Context, Tx) error) (err error) {
	finished := false
	defer func() {
		s.end()
		if finished {
			return
		}
		if s.trouble == nil && context.Cause(ctx) == nil {
			return
		}
		if panicked := recover(); panicked != nil {
			err = fmt.Errorf("handler panicked: %v", panicked)
		}
	}()
	err = fn(ctx, Tx{s})
	finished = true
	s.end()
	if s.refused != nil && !errors.Is(err, ErrTxControl) {
		err = errors.Join(s.refused, err)
	}
	return err
}

// sameTransaction finds out whether a handler has ended the transaction in a way
// that could not be refused. After another error, one that the connection gives
// says nothing new.
func sameTransaction(ctx context.Context, tx *sql.Tx, xid string, failed bool) error {
	var now string
	err := tx.QueryRowContext(ctx, `SELECT COALESCE(pg_current_xact_id_if_assigned()::text, '')`).Scan(&now)
	switch {
	case err != nil && failed:
		return nil
	case sqlState(err) == "25P02":
		return ErrTxAborted
	case err != nil:
		return err
	case now != xid:
		return fmt.Errorf("%w (it was done through Raw or StmtContext: the claim may be committed without its effects)", ErrTxControl)
	}
	return nil
}

// drainedOr replaces what a cancelled context made of an error by the reason
// for which it was cancelled.
func drainedOr(work context.Context, err error) error {
	if cause := context.Cause(work); err != nil && cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}
