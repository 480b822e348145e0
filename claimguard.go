package oncemill

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/oncemill/oncemill/internal/delivery"
)

// How long a lease can be.
const (
	LeastLease = 100 * time.Millisecond
	MostLease  = 30 * 24 * time.Hour
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
// A claim that has not been sent when ctx ends is not made. After any other error, such as
// ErrUnavailable, the key may be claimed all the same; Claim tries for a few seconds to release it. If it cannot, the claim will be
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
		claim, ambiguous := in.claimShared(ctx, work, c, d)
		if claim != nil {
			return in.inTime(ctx, d, claim)
		}
		if ambiguous {
			return in.claimAgain(ctx, work, c, d)
		}
	}
	return in.claimAlone(ctx, work, c, d)
}

// claimAlone claims a key in a transaction of its own, unless ctx ends before the claim is
// sent.
func (in *Inbox) claimAlone(ctx, work context.Context, c *Consumer, d *delivered) (*Claim, *Error) {
	// As in once: a claim that is gone when it is looked at was just released.
	for range 3 {
		claim, err, refused := in.tryClaim(ctx, work, c, d)
		switch {
		case err != nil && claim != nil: // nobody knows whether it is committed
			if !d.repeatable() {
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
	if !d.repeatable() {
		work, stop := in.outlive(ctx)
		defer stop()
		in.giveBack(work, claim, "it took as long as its lease to get")
	}
	return nil, d.failed(OpClaim, fmt.Errorf("%w: it took as long to get the claim", ErrLeaseOver))
}

// tryClaim is one transaction. Without a claim, a refusal and an error, the key was
// taken and then free again.
func (in *Inbox) tryClaim(ctx, work context.Context, c *Consumer, d *delivered) (claim *Claim, failed *Error, refused error) {
	failed = in.guardedFor(ctx, work, d, OpClaim, func(g *guardTx) (func(context.Context, Tx) error, error) {
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
	for ; ctx.Err() == nil; delivery.Sleep(ctx, claimPause) {
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
