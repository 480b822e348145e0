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

	// Late takes what can as well be written at the transaction's end, which others
	// share. nil: it is to be written at once.
	Late *Late

	// Enter keeps the transaction from ending until leave is called, or says that it has
	// ended. It is set with Late.
	Enter func() (leave func(), err error)

	mu    sync.Mutex
	after []func()
}

// AtEnd has add note in a Writer what is to be written at the transaction's end. There is
// one Writer of a name, which the first to ask for it makes. later is false, and nothing
// was noted, where it is to be written at once.
func (h *Handle) AtEnd(name string, make func() Writer, add func(Writer)) (later bool, err error) {
	if h.Late == nil {
		return false, nil
	}
	leave, err := h.Enter()
	if err != nil {
		return true, err
	}
	defer leave()
	h.Late.add(name, make, add)
	return true, nil
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

// A Writer writes what was left to the end of a transaction.
type Writer interface {
	Write(ctx context.Context, tx *Handle) error
}

// Late is what is left to the end of one transaction. The zero value is ready.
type Late struct {
	mu      sync.Mutex
	named   map[string]Writer
	writers []Writer
}

func (l *Late) add(name string, make func() Writer, add func(Writer)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.named[name]
	if w == nil {
		if l.named == nil {
			l.named = map[string]Writer{}
		}
		w = make()
		l.named[name] = w
		l.writers = append(l.writers, w)
	}
	add(w)
}

// Write writes it all.
func (l *Late) Write(ctx context.Context, tx *Handle) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range l.writers {
		if err := w.Write(ctx, tx); err != nil {
			return err
		}
	}
	return nil
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
