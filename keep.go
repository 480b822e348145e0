package oncemill

import (
	"context"
	"errors"
	"time"
)

// Context returns a context for the effect, with the values of ctx and the claim in it.
// It ends at the claim's Deadline, with the cause ErrLeaseOver; if the lease is extended
// before, at the new one. And it ends Inbox.DrainTimeout after ctx was cancelled, with
// the cause ErrDrained.
func (c *Claim) Context(ctx context.Context) (context.Context, context.CancelFunc) {
	work, stop := c.consumer.in.detach(ContextWithClaim(ctx, c))
	work, cancel := context.WithCancelCause(work)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		timer := time.NewTimer(time.Until(c.Deadline()))
		defer timer.Stop()
		for {
			select {
			case <-work.Done():
				return
			case <-timer.C:
			}
			left := time.Until(c.Deadline()) // it may have been extended
			if left <= 0 {
				cancel(ErrLeaseOver)
				return
			}
			timer.Reset(left)
		}
	}()
	return effectContext{work, c}, func() {
		cancel(context.Canceled)
		stop()
		<-ended
	}
}

// effectContext tells until when there is time, which Context may move.
type effectContext struct {
	context.Context
	claim *Claim
}

func (c effectContext) Deadline() (time.Time, bool) {
	deadline := c.claim.Deadline()
	if other, ok := c.Context.Deadline(); ok && other.Before(deadline) {
		deadline = other
	}
	return deadline, true
}

// Keep runs fn, for an effect that may take longer than a lease, and extends the
// lease meanwhile. fn's context has the claim in it. It ends, with the cause
// ErrFenced or ErrInDoubt, when the claim is no longer ours, and with ErrLeaseOver
// when the lease could not be extended in time; then fn must stop. Keep returns what
// fn does. The caller ends the claim.
func (c *Claim) Keep(ctx context.Context, fn func(ctx context.Context) error) error {
	lease := c.lease()
	kept, lost := context.WithCancelCause(ContextWithClaim(ctx, c))
	defer lost(nil)
	ended, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		c.extendUntil(kept, ended, lease, lost)
	}()
	defer func() { // also when fn panics
		close(ended)
		<-over
	}()
	return fn(kept)
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
