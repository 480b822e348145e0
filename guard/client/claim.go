package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"
)

const (
	// nonceLifetime is for how long after a claim the guard knows its nonce. Counted
	// from the first try, which is before the claim, it is over here no later.
	nonceLifetime = 30 * time.Second

	// unclaimLimit is for how long a caller who has stopped waiting is kept, to give
	// back what may have been claimed.
	unclaimLimit = 2 * time.Second
)

// What the guard answers to a claim.
const (
	proceed = "PROCEED"
	skip    = "SKIP"
	pending = "PENDING"
)

// A Claim is the right to make one effect, for as long as its lease lasts. Get one from
// Client.Claim, make the effect, then call Settle, Release or Fail. A claim that is not
// ended is in doubt once its lease is over.
//
// Methods may be called again after an error: what an earlier call has done counts as
// done. They may be called by several goroutines at a time.
type Claim struct {
	client *Client
	id     string
	token  string
	key    string // for the provider
	lease  time.Duration

	mu       sync.Mutex
	deadline time.Time   // monotonic: when the effect has to be over
	timer    *time.Timer // ends the effect; nil: not in Do
}

// ID returns the request's id.
func (c *Claim) ID() string { return c.id }

// ProviderKey returns the key to give the provider as its idempotency key, or as the
// caller's own id of the effect: the same for all attempts at this id, and what an
// operator looks for when the claim is in doubt. "" if the guard is older than that.
func (c *Claim) ProviderKey() string { return c.key }

// Deadline returns when the effect has to be over: somewhat before the lease is. It is
// on this process's monotonic clock, measured from before the claim was sent.
func (c *Claim) Deadline() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.deadline
}

// leaseMargin is how much earlier than the lease an effect has to be over: time for what
// is under way to come to its end, and for clocks that do not run equally fast.
func leaseMargin(lease time.Duration) time.Duration { return min(lease/10, 5*time.Second) }

// Claim claims an id. When it returns nil, the claim is on the guard's disk, and the
// caller should make the effect and end the claim before Claim.Deadline.
//
// After any error, which is an *Error, the effect must not be made. The package comment
// has a table of them. A try that gets no answer is repeated, under the same nonce, for
// as long as ctx and Client.Patience allow and at most 30 seconds from the first.
//
// If ctx ends while nobody knows whether the id is claimed, Claim takes up to two seconds
// more to give it back. Where it cannot, or after ErrUnavailable, the id may be in doubt
// after the lease, though no effect was begun.
func (c *Client) Claim(ctx context.Context, r Request) (*Claim, error) {
	body, err := r.body(rand.Text())
	for _, e := range []error{c.check(), r.check(), err} {
		if e != nil {
			return nil, failed(OpClaim, r.ID, fmt.Errorf("%w: %w", ErrInvalid, e))
		}
	}
	var a answer
	first, lease := time.Now(), orDefault(r.Lease, DefaultLease)
	ask := request{
		op: OpClaim, id: r.ID, method: http.MethodPost, path: "/claim", body: body,
		accept: a.into(r.ID, proceed, skip, pending),
	}
	failure := c.repeat(ctx, &ask, first.Add(min(c.patience(), nonceLifetime)))
	claim := &Claim{client: c, id: r.ID, lease: lease, deadline: first.Add(lease - leaseMargin(lease))}
	switch {
	case failure == nil && a.Status == proceed:
		claim.token, claim.key = a.Token, a.Provider
		if err := claim.renew(ctx); err != nil {
			return nil, err
		}
		return claim, nil
	case failure == nil:
		return nil, a.refusal(r.ID)
	case ctx.Err() != nil && errors.Is(failure, ErrUnavailable) && !ask.sent.IsZero():
		c.unclaim(ctx, claim, &ask, &a, first.Add(nonceLifetime))
	}
	return nil, failure
}

// refusal is why somebody who claims gets no claim.
func (a *answer) refusal(id string) *Error {
	e := &Error{Op: OpClaim, ID: id, Status: http.StatusOK, Reason: a.Reason}
	switch {
	case a.Status == skip && a.Failed:
		e.Err = ErrFailed
	case a.Status == skip:
		e.Err, e.Result = ErrSettled, shown(a.Existing)
	case a.InDoubt:
		e.Err = ErrInDoubt
	default:
		e.Err = ErrInFlight
	}
	return e
}

// renew begins the lease anew if most of it may have gone before the claim's answer was
// here. Then nobody knows which of the tries has begun it.
func (c *Claim) renew(ctx context.Context) *Error {
	if time.Until(c.deadline) >= c.lease/2 {
		return nil
	}
	err := c.Extend(ctx, c.lease)
	if err == nil {
		return nil
	}
	after, stop := context.WithTimeout(context.WithoutCancel(ctx), unclaimLimit)
	defer stop()
	_ = c.Release(after, "it took as long as its lease to get; no effect was begun") // or it is in doubt
	return failed(OpClaim, c.id, fmt.Errorf("%w: it took as long to get the claim: %w", ErrLeaseOver, err))
}

// unclaim gives back what a try may have claimed whose answer was not waited for.
func (c *Client) unclaim(ctx context.Context, claim *Claim, ask *request, a *answer, window time.Time) {
	if limit := time.Now().Add(unclaimLimit); limit.Before(window) {
		window = limit
	}
	after, stop := context.WithDeadline(context.WithoutCancel(ctx), window)
	defer stop()
	if c.try(after, ask) == nil && a.Status == proceed {
		claim.token, claim.key = a.Token, a.Provider
		_ = claim.Release(after, "its caller had stopped waiting; no effect was begun") // or it is in doubt
	}
}
