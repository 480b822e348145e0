package oncemill

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

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

// refusalEvent is an event about somebody who is refused because of a claim. What they
// have not said themselves it takes from the claim, but for who they are.
func (g *guardTx) refusalEvent(kind EventKind, held *Held, note string) event {
	e := g.claimEvent(kind, held.Token, note)
	if e.about.amount == "" && e.about.currency == "" {
		e.about.amount, e.about.currency = held.Amount, held.Currency
	}
	if e.about.action == "" {
		e.about.action = held.Action
	}
	return e
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
		return nil, &heldError{ErrKeyReused, held}, g.event(g.refusalEvent(EventConflict, held, ""))
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
		err = g.event(g.refusalEvent(EventBlocked, held, refused.Error()))
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
