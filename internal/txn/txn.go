// Package txn carries a handler's transaction through a context, so that the
// packages that open transactions and the packages that write into them need
// not know each other.
package txn

import (
	"context"
	"database/sql"
	"sync"
)

// Executor is the part of a transaction that writing into it takes. *sql.Tx,
// *sql.DB and oncemill.Tx have it.
type Executor interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// Handle is a transaction in a context, and what is to happen once it has
// committed.
type Handle struct {
	Executor

	mu    sync.Mutex
	after []func()
}

// AfterCommit has fn called once after the transaction has committed. A
// process that dies in between never calls it, so fn may only be a hint, such
// as a wake-up.
func (h *Handle) AfterCommit(fn func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.after = append(h.after, fn)
}

// Committed runs what AfterCommit collected.
func (h *Handle) Committed() {
	h.mu.Lock()
	after := h.after
	h.after = nil
	h.mu.Unlock()
	for _, fn := range after {
		fn()
	}
}

type contextKey struct{}

// With returns ctx with h in it.
func With(ctx context.Context, h *Handle) context.Context {
	return context.WithValue(ctx, contextKey{}, h)
}

// From returns the handle that With put into ctx.
func From(ctx context.Context) (*Handle, bool) {
	h, ok := ctx.Value(contextKey{}).(*Handle)
	return h, ok
}
