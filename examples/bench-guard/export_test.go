package main

import "context"

// A Caller is a wire.
type Caller struct{ w *wire }

// Dial connects to a server.
func Dial(ctx context.Context, addr string) (Caller, error) {
	w, err := dialHTTP(ctx, addr)
	return Caller{w}, err
}

// Claim claims an id.
func (c Caller) Claim(id string) (token string, err error) { return c.w.claim("turn", id) }

// Settle settles it.
func (c Caller) Settle(id, token string) error { return c.w.settle(id, token) }

// Close closes the connection.
func (c Caller) Close() { c.w.close() }

// CheckSafeAgent counts what the turn "turn" has left.
func CheckSafeAgent(ctx context.Context, addr, audit string, pairs int) error {
	return checkSafeAgent(ctx, addr, audit, "turn", pairs)
}

// LimitSQL is what the limit runs.
const LimitSQL = limitSQL
