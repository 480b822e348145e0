package oncemill

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"
)

// Settle ends the claim: the effect happened. result, or else what SetResult was
// given, is kept for those who claim the key again; at most MostResult bytes, more is
// refused with ErrResultTooLarge. fn, which may be nil, and the functions that
// OnSettle was given run in the same transaction: what they write, and the messages
// that they publish to the outbox with their context, is there if and only if the
// claim is settled.
//
// A late Settle is fine as long as nobody has taken the claim over. After that it is
// ErrFenced, which the events show, and nothing is written. After any other error the
// claim may be settled or not; call it again.
//
// The call goes on for Inbox.DrainTimeout when ctx ends, in whatever way: what has
// happened should be known.
func (c *Claim) Settle(ctx context.Context, result []byte, fn func(ctx context.Context, tx Tx) error) error {
	if result == nil {
		c.mu.Lock()
		result = c.result
		c.mu.Unlock()
	}
	if len(result) > MostResult {
		return c.d.invalid(OpSettle, fmt.Errorf("%w: %d bytes, at most %d: store it in a table of yours with fn, and settle with a reference", ErrResultTooLarge, len(result), MostResult))
	}
	fn = c.also(&c.onSettle, fn)
	work, stop := c.consumer.in.outlive(ctx)
	defer stop()
	if fn == nil && c.consumer.in.sharesStatements() && c.d.opts.Park == nil && c.settleShared(work, result) {
		c.observeSettled(ctx)
		return nil
	}
	return c.endIn(ctx, work, OpSettle, event{kind: EventSettled, result: result}, Settled, fn)
}

// also returns what runs the functions that were collected, and fn after them; nil if
// there is nothing to run.
func (c *Claim) also(collected *[]func(context.Context, Tx) error, fn func(context.Context, Tx) error) func(context.Context, Tx) error {
	c.mu.Lock()
	fns := slices.Clone(*collected)
	c.mu.Unlock()
	if fn != nil {
		fns = append(fns, fn)
	}
	if len(fns) == 0 {
		return nil
	}
	return func(ctx context.Context, tx Tx) error {
		for _, fn := range fns {
			if err := c.consumer.in.calm(fn)(ctx, tx); err != nil {
				return err
			}
		}
		return nil
	}
}

// calm makes an error of a panic: the effect has happened, and its claim has to be ended
// in one way or another. Many panic with the error of a connection that broke, so that is
// kept.
func (in *Inbox) calm(fn func(context.Context, Tx) error) func(context.Context, Tx) error {
	if fn == nil {
		return nil
	}
	return func(ctx context.Context, tx Tx) (err error) {
		defer func() {
			switch panicked := recover().(type) {
			case nil:
				return
			case error:
				err = fmt.Errorf("panicked: %w", markUnavailable(panicked))
			default:
				err = fmt.Errorf("panicked: %v", panicked)
			}
			in.Logger.ErrorContext(ctx, "oncemill: what was to be written with a claim's end "+err.Error(), "stack", string(debug.Stack()))
		}()
		return fn(ctx, tx)
	}
}

// Fail ends the claim: the effect did not happen and never will. Who claims the key
// again gets ErrSettled with the outcome Failed and the reason. fn, which may be nil, and
// the functions that OnFail was given run in the same transaction. Errors are those of
// Settle.
func (c *Claim) Fail(ctx context.Context, reason string, fn func(ctx context.Context, tx Tx) error) error {
	return c.end(ctx, OpFail, event{kind: EventFailed, note: reason}, Failed, c.also(&c.onFail, fn))
}

// endSQL settles a claim, if it is still the holder's. Here and below it is the outcome
// that is looked at, not settled_at, which would let the planner read the index of all that
// is not settled instead of one row.
const endSQL = `
UPDATE {schema}.claims SET settled_at = clock_timestamp(), outcome = $4, result = $5, reason = $6,
	in_doubt_since = NULL, ask_after = NULL
WHERE consumer = $1 AND key = $2 AND token = $3 AND outcome IS NULL
RETURNING ` + aboutColumns

// dropParkedSQL deletes what was parked for a claim that is settled. It is a statement of
// its own, for endSQL may have waited for a delivery that was parking: its snapshot is
// from before that.
const dropParkedSQL = `DELETE FROM {schema}.parked WHERE consumer = $1 AND key = $2 RETURNING 1`

// settle settles the claim, if it still has the event's token, and notes that.
func (g *guardTx) settle(outcome Outcome, reason string, e event) (bool, error) {
	ended, err := g.changed(endSQL, g.d.consumer, g.d.stored, e.token, string(outcome), e.result, nullText(storedText(reason)))
	if err != nil || !ended {
		return false, err
	}
	if _, err := g.happened(dropParkedSQL, g.d.consumer, g.d.stored); err != nil {
		return false, err
	}
	return true, g.event(e)
}

func (c *Claim) end(ctx context.Context, op Op, e event, outcome Outcome, fn func(context.Context, Tx) error) error {
	work, stop := c.consumer.in.outlive(ctx)
	defer stop()
	return c.endIn(ctx, work, op, e, outcome, fn)
}

// endIn is end in a context that is ended by whoever made it.
func (c *Claim) endIn(ctx, work context.Context, op Op, e event, outcome Outcome, fn func(context.Context, Tx) error) error {
	e.token, e.actor = c.token, c.d.opts.Actor
	err := c.stepIn(work, op, func(g *guardTx) (lent func(context.Context, Tx) error, because, err error) {
		ended, err := g.settle(outcome, e.note, e)
		switch {
		case err != nil:
			return nil, nil, err
		case ended:
			return fn, nil, nil
		}
		same, err := g.endedAs(c.token, outcome)
		if same {
			c.endedBefore()
		}
		if same || err != nil {
			return nil, nil, err
		}
		because, err = g.refuse(op, c.token, e)
		return nil, because, err
	})
	if err == nil && outcome == Settled {
		c.observeSettled(ctx)
	}
	return err
}

func (c *Claim) observeSettled(ctx context.Context) {
	if observer := c.consumer.in.Observer; observer.Committed != nil && !c.started.IsZero() {
		observer.Committed(ctx, c.consumer.name, c.d.key, time.Since(c.started))
	}
}

// step runs one step of the claim. because is why it was refused; what was written
// about that is committed nevertheless.
func (c *Claim) step(ctx context.Context, op Op, run func(g *guardTx) (lent func(context.Context, Tx) error, because, err error)) error {
	work, stop := c.consumer.in.outlive(ctx)
	defer stop()
	return c.stepIn(work, op, run)
}

// stepIn is step in a context that is ended by whoever made it.
func (c *Claim) stepIn(work context.Context, op Op, run func(g *guardTx) (lent func(context.Context, Tx) error, because, err error)) error {
	in := c.consumer.in
	var because error
	failed := in.guarded(work, c.d, op, func(g *guardTx) (lent func(context.Context, Tx) error, err error) {
		lent, because, err = run(g)
		return lent, err
	})
	if failed == nil && because != nil {
		failed = c.d.failed(op, because)
	}
	if failed == nil {
		return nil
	}
	if in.Observer.Failed != nil {
		in.Observer.Failed(work, failed)
	}
	return failed
}

const readTokenSQL = `SELECT COALESCE(token, 0), COALESCE(outcome, ''), ` + unconfirmed + ` FROM {schema}.claims WHERE consumer = $1 AND key = $2`

// endedAs reports whether an earlier call has ended the claim in the same way.
func (g *guardTx) endedAs(token int64, outcome Outcome) (bool, error) {
	var is int64
	var as Outcome
	var waits bool
	err := g.row(readTokenSQL, g.d.consumer, g.d.stored).Scan(&is, &as, &waits)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil && is == token && as == outcome, err
}

// Release ends the claim: the effect certainly did not happen, and the key is free
// again. If the message was parked meanwhile, it goes back to the outbox in the same
// transaction.
//
// Being sure takes proof: an error from before anything was sent, or a provider that
// was asked by the claim's ProviderKey. See VerdictOf. Errors are those of Settle; and
// ErrInDoubt for a further attempt at an effect that is in doubt, since it would forget
// the earlier ones. Then call Doubt, and Consumer.Resolve if there is proof for all.
func (c *Claim) Release(ctx context.Context, reason string) error {
	if c.attempt > 1 && !c.started.IsZero() {
		return c.d.invalid(OpRelease, fmt.Errorf("%w since attempt %d or before: call Doubt, and with proof Resolve", ErrInDoubt, c.attempt-1))
	}
	work, stop := c.consumer.in.outlive(ctx)
	defer stop()
	return c.release(work, reason)
}

func (c *Claim) release(work context.Context, reason string) error {
	e := event{kind: EventReleased, token: c.token, note: reason, actor: c.d.opts.Actor}
	return c.stepIn(work, OpRelease, func(g *guardTx) (_ func(context.Context, Tx) error, because, err error) {
		released, err := g.release(e, c.attempt > 0)
		if released || err != nil {
			return nil, nil, err
		}
		if released, err = g.happened(releasedSQL, g.d.consumer, g.d.stored, c.token); released || err != nil {
			if released {
				c.endedBefore()
			}
			return nil, nil, err
		}
		because, err = g.refuse(OpRelease, c.token, e)
		return nil, because, err
	})
}

// GiveBack ends the claim: its effect was not begun. It is Release for the first attempt,
// and Doubt for a further one, which says nothing of those before it.
func (c *Claim) GiveBack(ctx context.Context, why string) error {
	work, stop := c.consumer.in.outlive(ctx)
	defer stop()
	return c.giveBack(work, why)
}

func (c *Claim) giveBack(work context.Context, why string) error {
	why += "; no effect was begun"
	if c.attempt > 1 {
		return c.doubt(work, fmt.Sprintf("attempt %d: %s; an earlier one is in doubt", c.attempt, why), nil)
	}
	return c.release(work, why)
}

// releaseSQL frees a key. With $4 also one that was attempted more than once.
const releaseSQL = `
DELETE FROM {schema}.claims WHERE consumer = $1 AND key = $2 AND token = $3 AND outcome IS NULL AND (attempts = 1 OR $4)
RETURNING ` + aboutColumns

// unparkSQL puts the parked message back. It gets another broker dedup id, since
// it is to be delivered.
const unparkSQL = `
WITH unparked AS (
	DELETE FROM {schema}.parked WHERE consumer = $1 AND key = $2
	RETURNING topic, uuid, metadata, ordering_key, payload
), sent AS (
	INSERT INTO {schema}.outbox (topic, uuid, metadata, ordering_key, payload)
	SELECT topic, uuid, metadata, ordering_key, payload FROM unparked
)
SELECT 1 FROM unparked`

// releasedSQL finds out whether an earlier call has released the claim.
const releasedSQL = `
SELECT (` + unconfirmed + `)::integer FROM {schema}.events WHERE consumer = $1 AND key = $2 AND token = $3 AND kind = 'released'
LIMIT 1`

// release frees the key, if the claim still has the event's token.
func (g *guardTx) release(e event, furtherAttempts bool) (bool, error) {
	released, err := g.changed(releaseSQL, g.d.consumer, g.d.stored, e.token, furtherAttempts)
	if !released || err != nil {
		return false, err
	}
	back, err := g.happened(unparkSQL, g.d.consumer, g.d.stored)
	if err != nil {
		return false, err
	}
	if back {
		e.note = joinNotes(e.note, "its message went back to the outbox")
	}
	return true, g.event(e)
}

// Doubt ends the attempt: nobody knows whether the effect happened. The lease ends at
// once, and the claim is in doubt until it is resolved or claimed again. park, which
// may be nil, is the message, to be stored in the same transaction: see
// ClaimOptions.Park. Errors are those of Settle.
func (c *Claim) Doubt(ctx context.Context, reason string, park *ParkedMessage) error {
	if park != nil {
		if err := park.check(); err != nil {
			return c.d.invalid(OpDoubt, err)
		}
	}
	work, stop := c.consumer.in.outlive(ctx)
	defer stop()
	return c.doubt(work, reason, park)
}

func (c *Claim) doubt(work context.Context, reason string, park *ParkedMessage) error {
	e := event{kind: EventInDoubt, token: c.token, note: reason, actor: c.d.opts.Actor}
	err := c.stepIn(work, OpDoubt, func(g *guardTx) (_ func(context.Context, Tx) error, because, err error) {
		doubted, err := g.changed(doubtSQL, g.d.consumer, g.d.stored, c.token, storedText(reason))
		switch {
		case err != nil:
			return nil, nil, err
		case doubted:
			if park != nil {
				_, err = g.park(park)
			}
			return nil, nil, errors.Join(err, g.event(e))
		}
		because, err = g.refuse(OpDoubt, c.token, e)
		return nil, because, err
	})
	if err == nil && c.consumer.in.Observer.InDoubt != nil {
		c.consumer.in.Observer.InDoubt(work, c.consumer.name, c.d.key, reason)
	}
	return err
}

const doubtSQL = `
UPDATE {schema}.claims SET lease_until = LEAST(lease_until, clock_timestamp()), effect_until = LEAST(effect_until, clock_timestamp()),
	in_doubt_since = COALESCE(in_doubt_since, clock_timestamp()), reason = $4
WHERE consumer = $1 AND key = $2 AND token = $3 AND outcome IS NULL
RETURNING ` + aboutColumns

// Extend gives the claim another lease from now on, and moves Deadline; a lease that
// would end earlier than the one it has changes nothing. A further attempt at an effect
// in doubt is not extended beyond ClaimOptions.KeyLifetime. It fails with
// ErrFenced if the claim was taken over, and with ErrInDoubt if it was found in doubt.
// 0 means Inbox.Lease.
func (c *Claim) Extend(ctx context.Context, lease time.Duration) error {
	lease = orDefault(lease, c.consumer.in.Lease)
	if lease < LeastLease || lease > MostLease {
		return c.d.invalid(OpExtend, fmt.Errorf("lease is %v: must be from %v to %v", lease, LeastLease, MostLease))
	}
	start := time.Now()
	e := event{kind: EventExtended, token: c.token, note: "by " + lease.String(), actor: c.d.opts.Actor}
	var left int64 // of the lease, in microseconds
	var until time.Time
	err := c.step(ctx, OpExtend, func(g *guardTx) (_ func(context.Context, Tx) error, because, err error) {
		err = g.row(extendSQL, g.d.consumer, g.d.stored, c.token, lease.Microseconds(), c.d.opts.KeyLifetime.Microseconds()).
			Scan(&left, &until, &g.about.action, &g.about.agent, &g.about.amount, &g.about.currency)
		switch {
		case err == nil:
			return nil, nil, g.event(e)
		case !errors.Is(err, sql.ErrNoRows):
			return nil, nil, err
		}
		because, err = g.refuse(OpExtend, c.token, e)
		return nil, because, err
	})
	if err == nil {
		lease = min(lease, time.Duration(left)*time.Microsecond)
		c.mu.Lock()
		c.until = until
		if deadline := start.Add(lease - leaseMargin(lease)); deadline.After(c.deadline) {
			c.deadline = deadline
		}
		c.mu.Unlock()
	}
	return err
}

// extendSQL extends a lease by $4. $5 is for how long from the first attempt the provider
// knows the key: no further attempt may go on after that, nor at all where it is 0, not
// known, as for a claim from Resume.
const extendSQL = `
WITH until AS (
	SELECT CASE WHEN attempts > 1
		THEN LEAST(clock_timestamp() + $4 * interval '1 microsecond', claimed_at + $5::bigint * interval '1 microsecond')
		ELSE clock_timestamp() + $4 * interval '1 microsecond' END AS until
	FROM {schema}.claims WHERE consumer = $1 AND key = $2
)
UPDATE {schema}.claims SET lease_until = GREATEST(lease_until, until), effect_until = GREATEST(effect_until, until)
FROM until
WHERE consumer = $1 AND key = $2 AND token = $3 AND outcome IS NULL AND in_doubt_since IS NULL
RETURNING (extract(epoch FROM GREATEST(lease_until - clock_timestamp(), interval '0')) * 1000000)::bigint, lease_until, ` + aboutColumns
