package oncemill

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// How long a lease can be.
const (
	leastLease = 100 * time.Millisecond
	mostLease  = 30 * 24 * time.Hour
)

// leaseMargin is how much earlier than the lease an effect has to be over: time for
// what is under way to come to its end, and for clocks that do not run equally fast.
func leaseMargin(lease time.Duration) time.Duration { return min(lease/10, 5*time.Second) }

// Claim claims a key for an effect outside of Postgres. When it returns nil, the
// claim is on disk, and the caller should make the effect and end the claim before
// Claim.Deadline.
//
// Otherwise the effect must not be made. The error is an *Error, which says by
// which claim the key is taken, with
//
//   - ErrSettled: the effect happened, or never will. Error.Held has the outcome,
//     the result and the token, to be given to whoever asks again;
//   - ErrInFlight: another attempt is under way, for at most Error.Held.Remaining;
//   - ErrInDoubt: an attempt has ended and nobody knows what became of its effect.
//     See ClaimOptions.KeyLifetime and Resolver;
//   - ErrKeyReused, ErrTooOld, ErrNoKey: the message is at fault.
//
// After any other error, such as ErrUnavailable, the key may be claimed all the
// same; Claim tries for a few seconds to release it. If it cannot, the claim will be
// in doubt after its lease, though no effect was begun.
func (c *Consumer) Claim(ctx context.Context, key string, opts ClaimOptions) (*Claim, error) {
	called := time.Now()
	d := &delivered{consumer: c.name, key: key, stored: storedKey(key), opts: opts}
	claim, err := c.in.claimGuarded(ctx, c, d)
	if err == nil {
		claim.started = called
	}
	if err != nil && err.Held == nil && errors.Is(err, ErrInFlight) && !opts.Patient {
		c.in.noteBlocked(ctx, d, err)
	}
	switch observer := c.in.Observer; {
	case err == nil:
		return claim, nil
	case errors.Is(err, ErrSettled):
		if observer.Duplicate != nil {
			observer.Duplicate(ctx, c.name, key)
		}
	case observer.Failed != nil:
		observer.Failed(ctx, err)
	}
	return nil, err
}

// noteBlocked notes that somebody was refused who waited in vain for another transaction
// with the key, so that their own is rolled back.
func (in *Inbox) noteBlocked(ctx context.Context, d *delivered, because *Error) {
	work, stop := in.outlive(ctx)
	defer stop()
	if failed := in.guarded(work, d, OpClaim, func(g *guardTx) (func(context.Context, Tx) error, error) {
		return nil, g.event(g.claimEvent(EventBlocked, 0, because.Err.Error()))
	}); failed != nil {
		in.Logger.WarnContext(ctx, "oncemill: a claim was refused, and that could not be noted in the events", "error", failed)
	}
}

func (in *Inbox) claimGuarded(ctx context.Context, c *Consumer, d *delivered) (*Claim, *Error) {
	if err := d.enterable(ctx, d.opts.checkClaim()); err != nil {
		return nil, err
	}
	leave, err := in.flights.enter(ctx, flight{d.consumer, d.stored}, in.LockWait)
	if err != nil {
		return nil, d.failed(OpKey, err)
	}
	defer leave()
	work, stop := in.detach(ctx)
	defer stop()
	d.opts.Lease = orDefault(d.opts.Lease, in.Lease)
	if in.sharesStatements() && d.opts.Origin.IsZero() {
		claim, ambiguous := in.claimShared(work, c, d)
		if claim != nil {
			return in.inTime(ctx, d, claim)
		}
		if ambiguous {
			return in.claimAgain(ctx, work, c, d)
		}
	}
	return in.claimAlone(ctx, work, c, d)
}

func (in *Inbox) claimAlone(ctx, work context.Context, c *Consumer, d *delivered) (*Claim, *Error) {
	// As in once: a claim that is gone when it is looked at was just released.
	for range 3 {
		claim, err, refused := in.tryClaim(work, c, d)
		switch {
		case err != nil && claim != nil: // nobody knows whether it is committed
			if d.opts.Nonce == nil || d.ownNonce {
				in.unclaim(ctx, claim)
			}
			return nil, err
		case err != nil:
			return nil, err
		case refused != nil:
			in.observeDoubt(ctx, d, refused)
			return nil, d.failed(OpClaim, refused)
		case claim != nil:
			return in.inTime(ctx, d, claim)
		}
	}
	return nil, d.failed(OpClaim, ErrInFlight)
}

// inTime gives back a claim that leaves its effect no time at all.
func (in *Inbox) inTime(ctx context.Context, d *delivered, claim *Claim) (*Claim, *Error) {
	if time.Now().Before(claim.Deadline()) {
		if claim.noticed && in.Observer.InDoubt != nil {
			in.Observer.InDoubt(ctx, d.consumer, d.key, leaseWasOver)
		}
		return claim, nil
	}
	if d.opts.Nonce == nil || d.ownNonce {
		work, stop := in.outlive(ctx)
		defer stop()
		in.giveBack(work, claim, "it took as long as its lease to get")
	}
	return nil, d.failed(OpClaim, fmt.Errorf("%w: it took as long to get the claim", ErrLeaseOver))
}

// tryClaim is one transaction. Without a claim, a refusal and an error, the key was
// taken and then free again.
func (in *Inbox) tryClaim(work context.Context, c *Consumer, d *delivered) (claim *Claim, failed *Error, refused error) {
	failed = in.guarded(work, d, OpClaim, func(g *guardTx) (func(context.Context, Tx) error, error) {
		start := time.Now() // before the lease begins
		taken, err := g.take()
		if err == nil && taken == nil {
			taken, refused, err = g.takeHeld()
		}
		if err != nil {
			return nil, inFlightOr(work, err, in.LockWait)
		}
		if taken != nil {
			claim = d.claimed(c, taken, start, g.xid)
		}
		return nil, nil
	})
	if failed != nil && failed.Op != OpCommit {
		claim = nil
	}
	return claim, failed, refused
}

// claimed makes a Claim of what was taken. start is from before the lease began, or was
// looked at.
func (d *delivered) claimed(c *Consumer, taken *Held, start time.Time, xid string) *Claim {
	lease := d.opts.Lease
	if taken.repeated {
		lease = taken.Remaining
	}
	return &Claim{
		consumer: c, d: d, token: taken.Token, attempt: taken.Attempts, first: taken.ClaimedAt,
		started:  start,
		xid:      xid,
		noticed:  taken.Attempts > 1 && !taken.noted,
		deadline: start.Add(lease - leaseMargin(d.opts.Lease)),
		until:    taken.LeaseUntil,
	}
}

// observeDoubt tells of a claim that nobody has known before to be in doubt.
func (in *Inbox) observeDoubt(ctx context.Context, d *delivered, refused error) {
	var h *heldError
	if in.Observer.InDoubt != nil && errors.Is(refused, ErrInDoubt) && errors.As(refused, &h) && !h.held.noted {
		in.Observer.InDoubt(ctx, d.consumer, d.key, leaseWasOver)
	}
}

// leaseWasOver is the reason of doubt where no attempt has given one.
const leaseWasOver = "its lease was over"

// inFlightOr names the error of a statement that waited for another transaction
// with the same key.
func inFlightOr(ctx context.Context, err error, waited time.Duration) error {
	switch state := sqlState(err); {
	case state == "55P03":
		return fmt.Errorf("%w: waited %v for its transaction", ErrInFlight, waited)
	case state == "57014" && ctx.Err() == nil:
		return fmt.Errorf("%w: waited for its transaction until statement_timeout", ErrInFlight)
	}
	return err
}

// unclaim gives back a claim of which nobody knows whether it was committed, and whose
// effect has not begun. The COMMIT may still be under way, as when it waits for a
// standby; only then is there a row to release. If all that takes too long, the claim
// will be in doubt.
func (in *Inbox) unclaim(ctx context.Context, claim *Claim) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), claimPatience)
	defer cancel()
	for ; ctx.Err() == nil; pauseFor(ctx, claimPause) {
		var status string
		err := in.DB.QueryRowContext(ctx, `SELECT COALESCE(pg_xact_status($1::text::xid8), '')`, claim.xid).Scan(&status)
		switch {
		case err == nil && status == "committed":
			in.giveBack(ctx, claim, "the answer to its COMMIT was lost")
			return
		case err == nil && status != "in progress":
			return
		}
	}
}

// giveBack is Claim.GiveBack for a claim that its caller does not get to see.
func (in *Inbox) giveBack(work context.Context, claim *Claim, why string) {
	if err := claim.giveBack(work, why); err != nil {
		in.Logger.WarnContext(work, "oncemill: a claim whose effect was not begun could not be released; it will be in doubt after its lease",
			"consumer", claim.consumer.name, "key", claim.d.key, "token", claim.token, "error", err)
	}
}

// Held says by what a key is taken.
type Held struct {
	Outcome    Outcome   // "": not settled
	Result     []byte    // what the claim was settled with; nil: nothing
	Reason     string    // why it failed or is in doubt
	Token      int64     // of the latest attempt; 0: a claim of Once, without a lease
	Attempts   int       // so far
	ClaimedAt  time.Time // when the first attempt began
	LeaseUntil time.Time // when the latest attempt's lease ends
	InDoubt    bool      // its lease is over, or it is being resolved
	Parked     bool      // this call has parked the message

	Remaining time.Duration // from when it was looked at to LeaseUntil; 0: that is over

	// What the claim is about: see ClaimOptions.
	Action, Agent, Amount, Currency string

	fingerprint []byte
	repeated    bool // it was claimed by the same call as this one, whose answer was lost
	recognised  bool // by the provider, for as long as another attempt would take
	over        bool // its lease, or that of a resolver which asks about it
	noted       bool // that it is in doubt
}

func (h *Held) about() about { return about{h.Action, h.Agent, h.Amount, h.Currency} }

// heldError carries what a key is taken by to the Error that will be returned.
type heldError struct {
	error
	held *Held
}

func (e *heldError) Unwrap() error { return e.error }

// insertGuardedSQL claims a free key. Where it is taken, lock_timeout stays for
// readHeldSQL, which waits for the row's lock; where it is not, it is put back.
const insertGuardedSQL = `
WITH session AS MATERIALIZED (
	SELECT current_setting('lock_timeout') AS lock_timeout, set_config('lock_timeout', $5, true), clock_timestamp() AS now
), won AS (
	INSERT INTO {schema}.claims (consumer, key, token, attempts, claimed_at, lease_until, effect_until, settled_at, outcome, fingerprint,
		action, agent, scope, amount, currency, nonce)
	SELECT $1, $2, nextval('{schema}.tokens'), 1, now, now + $4 * interval '1 microsecond', now + $4 * interval '1 microsecond', NULL, NULL, $3,
		$8, $9, $10, $11::text::numeric, $12, $13
	FROM session
	ON CONFLICT (consumer, key) DO NOTHING
	RETURNING token, attempts, claimed_at, lease_until
)
SELECT w.token, w.attempts, w.claimed_at, w.lease_until,
	COALESCE($6::timestamptz < clock_timestamp() - $7 * interval '1 second', false),
	set_config('lock_timeout', session.lock_timeout, true)
FROM session, won AS w`

// take claims the key if it is free, and returns nil if it is not.
func (g *guardTx) take() (*Held, error) {
	var h Held
	var old bool
	var lockTimeout string
	o := &g.d.opts
	err := g.row(insertGuardedSQL, g.d.consumer, g.d.stored, o.Fingerprint, o.Lease.Microseconds(), milliseconds(g.in.LockWait),
		nullTime(o.Origin), int64(clockMargin/time.Second),
		nullText(o.Action), nullText(o.Agent), nullText(o.Scope), nullText(o.Amount), nullText(o.Currency), o.nonceDigest()).Scan(&h.Token, &h.Attempts, &h.ClaimedAt, &h.LeaseUntil, &old, &lockTimeout)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, nil
	case err != nil:
		return nil, err
	case old:
		if err := g.checkWatermark(); err != nil {
			return nil, err
		}
	}
	return &h, g.event(g.claimEvent(EventClaimed, h.Token, ""))
}

func (g *guardTx) checkWatermark() error {
	stmt, err := g.in.sql.prepare(g.ctx, watermarkSQL)
	if err != nil {
		return err
	}
	return checkWatermark(g.ctx, g.tx, stmt, g.d)
}

// claimEvent is an event about somebody who claims.
func (g *guardTx) claimEvent(kind EventKind, token int64, note string) event {
	o := &g.d.opts
	return event{kind: kind, token: token, note: note, about: o.about(), payload: o.Payload, actor: o.Actor}
}

// heldSQL reads a claim. $3 and $4 are how long the provider knows the key, and how long
// the next lease would be; $5 and $6 are the caller's nonce, and for how long it counts.
const heldSQL = `
SELECT COALESCE(outcome, ''), result, COALESCE(reason, ''), COALESCE(token, 0), COALESCE(attempts, 0),
	COALESCE(claimed_at, settled_at), COALESCE(lease_until, settled_at),
	settled_at IS NULL AND (in_doubt_since IS NOT NULL OR lease_until < clock_timestamp()),
	(extract(epoch FROM GREATEST(lease_until - clock_timestamp(), interval '0')) * 1000000)::bigint,
	fingerprint, in_doubt_since IS NOT NULL, COALESCE(lease_until < clock_timestamp(), false),
	COALESCE(clock_timestamp() + $4 * interval '1 microsecond' < claimed_at + $3 * interval '1 microsecond', false),
	COALESCE(nonce = $5 AND settled_at IS NULL AND in_doubt_since IS NULL AND attempts = 1
		AND clock_timestamp() < LEAST(lease_until, claimed_at + $6 * interval '1 microsecond'), false),
	` + aboutColumns + `
FROM {schema}.claims WHERE consumer = $1 AND key = $2`

// readHeldSQL keeps others from changing the claim meanwhile.
const readHeldSQL = heldSQL + `
FOR UPDATE`

// heldArgs are the parameters of both.
func (d *delivered) heldArgs() []any {
	repeatable := NonceLifetime
	if d.ownNonce { // the call is still the same
		repeatable = d.opts.Lease
	}
	return []any{d.consumer, d.stored, d.opts.KeyLifetime.Microseconds(), d.opts.Lease.Microseconds(), d.opts.nonceDigest(), repeatable.Microseconds()}
}

// readHeld returns nil if the key is free.
func (g *guardTx) readHeld() (*Held, error) { return scanHeld(g.row(readHeldSQL, g.d.heldArgs()...)) }

func scanHeld(row *sql.Row) (*Held, error) {
	var h Held
	var remaining sql.NullInt64
	err := row.Scan(&h.Outcome, &h.Result, &h.Reason, &h.Token, &h.Attempts, &h.ClaimedAt, &h.LeaseUntil, &h.InDoubt, &remaining,
		&h.fingerprint, &h.noted, &h.over, &h.recognised, &h.repeated, &h.Action, &h.Agent, &h.Amount, &h.Currency)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if h.Outcome == "" {
		h.Remaining = time.Duration(remaining.Int64) * time.Microsecond
	}
	return &h, err
}

// takeHeld claims a key that is taken, if its claim is in doubt and the provider
// will recognise the effect; and else says why it does not.
func (g *guardTx) takeHeld() (taken *Held, refused, err error) {
	held, err := g.readHeld()
	if held == nil || err != nil {
		return nil, nil, err
	}
	o := &g.d.opts
	switch {
	case o.Fingerprint != nil && held.fingerprint != nil && !bytes.Equal(o.Fingerprint, held.fingerprint):
		return nil, &heldError{ErrKeyReused, held}, g.event(g.claimEvent(EventConflict, held.Token, ""))
	case held.Outcome != "":
		refused = fmt.Errorf("%w: as %s", ErrSettled, held.Outcome)
	case held.repeated && bytes.Equal(o.Fingerprint, held.fingerprint):
		return held, nil, g.event(g.claimEvent(EventRepeated, held.Token, "the call was repeated with its nonce"))
	case held.over && held.recognised:
		taken, err = g.takeOver(held)
		return taken, nil, err
	case held.InDoubt && held.recognised:
		// As soon as the resolver has its answer, there may be another attempt.
		refused = fmt.Errorf("%w: a resolver, which asks what became of it", ErrInFlight)
	case held.InDoubt:
		refused = ErrInDoubt
		if !held.noted {
			err = g.noteDoubt(held)
		}
		if err == nil && o.Park != nil {
			held.Parked, err = g.park(o.Park)
		}
	default:
		refused = fmt.Errorf("%w, for at most %v", ErrInFlight, held.Remaining.Round(time.Millisecond))
	}
	if err == nil && !(o.Patient && errors.Is(refused, ErrInFlight)) {
		err = g.event(g.claimEvent(EventBlocked, held.Token, refused.Error()))
	}
	return nil, &heldError{refused, held}, err
}

const takeOverSQL = `
UPDATE {schema}.claims SET token = nextval('{schema}.tokens'), attempts = attempts + 1,
	lease_until = clock_timestamp() + $3 * interval '1 microsecond',
	effect_until = clock_timestamp() + $3 * interval '1 microsecond',
	in_doubt_since = NULL, ask_after = NULL, asked = NULL, reason = NULL
WHERE consumer = $1 AND key = $2
RETURNING token, attempts, claimed_at, lease_until`

// takeOver gives a claim in doubt, which this transaction has read for update, to a
// new attempt.
func (g *guardTx) takeOver(held *Held) (*Held, error) {
	if !held.noted {
		if err := g.event(event{kind: EventInDoubt, token: held.Token, note: leaseWasOver, about: held.about()}); err != nil {
			return nil, err
		}
	}
	h := Held{noted: held.noted}
	err := g.row(takeOverSQL, g.d.consumer, g.d.stored, g.d.opts.Lease.Microseconds()).
		Scan(&h.Token, &h.Attempts, &h.ClaimedAt, &h.LeaseUntil)
	if err != nil {
		return nil, err
	}
	return &h, g.event(g.claimEvent(EventTakenOver, h.Token, fmt.Sprintf("attempt %d, from token %d: %s", h.Attempts, held.Token, whyInDoubt(held))))
}

func whyInDoubt(held *Held) string {
	if held.Reason != "" {
		return held.Reason
	}
	return leaseWasOver
}

const noteDoubtSQL = `
UPDATE {schema}.claims SET in_doubt_since = lease_until, reason = COALESCE(reason, $3)
WHERE consumer = $1 AND key = $2
RETURNING 1`

// noteDoubt notes that a claim's lease is over, which nobody has noticed before.
func (g *guardTx) noteDoubt(held *Held) error {
	if _, err := g.happened(noteDoubtSQL, g.d.consumer, g.d.stored, leaseWasOver); err != nil {
		return err
	}
	held.Reason = whyInDoubt(held)
	return g.event(event{kind: EventInDoubt, token: held.Token, note: leaseWasOver, about: held.about()})
}
