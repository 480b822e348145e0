package oncemill

import (
	"context"
	"errors"
	"time"
)

// Context returns a context for the effect, with the values of ctx and the claim in it.
// It ends at the claim's Deadline, with the cause ErrLeaseOver, or at that of ctx; and
// Inbox.DrainTimeout after ctx was cancelled, with the cause ErrDrained. The Deadline is
// that of the moment: Extend does not move it. For an effect that may take longer than
// the lease there is Keep.
func (c *Claim) Context(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, cause := c.Deadline(), ErrLeaseOver
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline, cause = d, context.DeadlineExceeded
	}
	open, stop := c.consumer.in.detach(ContextWithClaim(ctx, c))
	work, cancel := context.WithDeadlineCause(context.WithValue(open, openKey{}, open), deadline, cause)
	return work, func() {
		cancel()
		stop()
	}
}

// openKey is the key of a context's value that is the same context without the claim's
// Deadline.
type openKey struct{}

// Keep runs fn, for an effect that may take longer than a lease, and extends the
// lease meanwhile. fn's context has the claim in it, and no deadline: set timeouts of
// your own in fn. It ends, with the cause ErrFenced or ErrInDoubt, when the claim is no
// longer ours, with ErrLeaseOver when the lease could not be extended in time, and when
// ctx does; but not for a ctx from Context, or one from Guard, whose lease is the one
// that is extended. Then fn must stop. Keep returns what fn does. The caller ends the
// claim.
func (c *Claim) Keep(ctx context.Context, fn func(ctx context.Context) error) error {
	kept, lost := context.WithCancelCause(ContextWithClaim(context.WithoutCancel(ctx), c))
	for _, outer := range outerContexts(ctx) {
		defer context.AfterFunc(outer, func() {
			if cause := context.Cause(outer); !errors.Is(cause, ErrLeaseOver) {
				lost(cause)
			}
		})()
	}
	ended, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		c.extendUntil(kept, ended, c.lease(), lost)
	}()
	defer func() { // also when fn panics
		close(ended)
		lost(nil) // an extension that is under way need not come to its end
		<-over
	}()
	return fn(kept)
}

// outerContexts are those whose end ends what is kept: ctx, and the one that it was
// given its deadline from, which goes on when that has passed.
func outerContexts(ctx context.Context) []context.Context {
	if open, ok := ctx.Value(openKey{}).(context.Context); ok {
		return []context.Context{ctx, open}
	}
	return []context.Context{ctx}
}

// lease is for how long the claim was claimed.
func (c *Claim) lease() time.Duration { return c.d.opts.Lease }

// extendUntil extends the lease again and again until ended is closed, or until it
// is lost.
func (c *Claim) extendUntil(ctx context.Context, ended <-chan struct{}, lease time.Duration, lost context.CancelCauseFunc) {
	over := time.NewTimer(time.Until(c.Deadline()))
	defer over.Stop()
	next := time.NewTimer(lease / 3)
	defer next.Stop()
	extended := make(chan error, 1)
	extending := false
	for {
		select {
		case <-ended:
			if extending {
				<-extended
			}
			return
		case <-over.C:
			lost(ErrLeaseOver)
		case <-next.C:
			extending = true
			go func() { extended <- c.Extend(ctx, lease) }()
		case err := <-extended:
			extending = false
			switch {
			case err == nil:
				over.Reset(time.Until(c.Deadline()))
				next.Reset(lease / 3)
			case errors.Is(err, ErrFenced) || errors.Is(err, ErrInDoubt) || errors.Is(err, ErrSettled):
				lost(err)
			default:
				next.Reset(lease / 10)
			}
		}
	}
}
