package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Do makes an effect once: it claims the id, runs fn under a context that ends at the
// claim's deadline, and settles the claim with the result, a JSON object or nil. If the
// effect has happened before, fn does not run, and the result is the stored one; nil, if
// the guard does not show it to this client.
//
// So nil means that the effect has happened, now or earlier. The errors of a claim, and
// ErrFailed, mean that fn did not run. What fn's own error proves decides over the claim:
//
//	DidNotHappen    it is released, and the id is free again
//	NeverWill       it failed: later calls get ErrFailed, and do not run fn
//	any other       the error is also ErrInDoubt, and the claim in doubt after its lease
//
// A panic is like any other error. What ends the claim goes on for Client.Patience when
// ctx ends. With an error of OpSettle the effect has happened, and the result is returned
// beside it.
func (c *Client) Do(ctx context.Context, r Request, fn func(ctx context.Context) (result json.RawMessage, err error)) (json.RawMessage, error) {
	claim, err := c.Claim(ctx, r)
	var held *Error
	switch {
	case errors.As(err, &held) && errors.Is(err, ErrSettled):
		return held.Result, nil
	case err != nil:
		return nil, err
	}
	result, err := claim.run(ctx, fn)
	after := context.WithoutCancel(ctx)
	if err != nil {
		return nil, claim.give(after, err)
	}
	return result, claim.Settle(after, result)
}

// run makes the effect. fn's context has the claim in it.
func (c *Claim) run(ctx context.Context, fn func(ctx context.Context) (json.RawMessage, error)) (json.RawMessage, error) {
	ctx, cancel := context.WithCancelCause(context.WithValue(ctx, claimKey{}, c))
	defer cancel(nil)
	stop := c.watch(func() { cancel(ErrLeaseOver) })
	defer stop()
	result, err := fn(ctx)
	if err != nil && VerdictOf(err) == Unknown && errors.Is(context.Cause(ctx), ErrLeaseOver) {
		err = fmt.Errorf("%w: %w", ErrLeaseOver, err)
	}
	return result, err
}

// watch has over called at the deadline, wherever Extend moves it.
func (c *Claim) watch(over func()) (stop func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.timer = time.AfterFunc(time.Until(c.deadline), func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		left := time.Until(c.deadline)
		switch {
		case c.timer == nil: // stopped meanwhile
		case left > 0: // extended
			c.timer.Reset(left)
		default:
			over()
		}
	})
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.timer.Stop()
		c.timer = nil
	}
}

// give ends the claim by what the effect's error proves, and returns the error.
func (c *Claim) give(ctx context.Context, err error) error {
	failure := failed(OpEffect, c.id, err)
	var ended error
	switch VerdictOf(err) {
	case NotHappened:
		ended = c.Release(ctx, err.Error())
	case Never:
		ended = c.Fail(ctx, err.Error())
	default:
		failure.Err = fmt.Errorf("%w: %w", ErrInDoubt, err)
	}
	if ended != nil {
		return errors.Join(failure, ended)
	}
	return failure
}

type claimKey struct{}

// ClaimFromContext returns the claim under which Do runs its function, so that a long
// effect can call Extend. Outside of Do, ok is false.
func ClaimFromContext(ctx context.Context) (claim *Claim, ok bool) {
	claim, ok = ctx.Value(claimKey{}).(*Claim)
	return claim, ok
}
