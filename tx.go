package oncemill

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"time"

	"github.com/oncemill/oncemill/internal/txn"
)

// A Tx lends a handler the transaction that holds its claim. It can run
// statements but not end the transaction: a handler that could commit would
// commit its claim before its effects are complete, and the message would be
// lost. Statements that begin, commit or roll back are refused with
// ErrTxControl; savepoints are allowed.
//
// Queries with arguments that are run often are prepared, once for all transactions: lib/pq
// needs a second round trip for those that are not.
//
// A Tx is a plain value and can be handed on, to sqlc's New for one. It ends
// when the function that received it returns; after that every method fails
// with ErrTxEnded. The zero Tx fails with ErrNoTx. Like *sql.Tx it must not be used by two goroutines at once.
type Tx struct{ s *txState }

type txState struct {
	tx   *sql.Tx
	conn *sql.Conn // nil: Raw has nothing to offer

	stmts   *txStatements   // nil: none
	watched <-chan struct{} // when this is closed, the transaction is interrupted; nil: it is not

	mu      sync.RWMutex // held for reading by every statement
	ended   bool
	refused error  // the first misuse, which makes the transaction roll back
	unseen  bool   // a statement was run that could not be looked at beforehand
	shared  *share // with others; nil: the transaction is the handler's alone

	// What the last statement tells of why the transaction failed, if it did.
	at      time.Time       // when it ended
	gaveUp  bool            // its own context had ended by then
	open    context.Context // of a query whose rows may still be open; nil: none
	trouble error           // why it failed, if that was not the handler's doing
	failed  bool            // it failed, or may have broken the connection
}

// ExecContext runs a statement that returns no rows. In a batch it may return before that:
// see the package's comment.
func (t Tx) ExecContext(ctx context.Context, query string, args ...any) (result sql.Result, err error) {
	err = t.s.use(ctx, query, func() error {
		if result = t.s.deferred(query, args); result != nil {
			if t.s.shared.pending.full() {
				return t.s.flush(ctx)
			}
			return nil
		}
		if err := t.s.flush(ctx); err != nil {
			return err
		}
		ctx := t.s.within(ctx)
		if stmt := t.s.prepared(ctx, query, args); stmt != nil {
			result, err = stmt.ExecContext(ctx, args...)
			return t.s.after(query, err)
		}
		result, err = t.s.tx.ExecContext(ctx, query, args...)
		return err
	})
	return result, err
}

// QueryContext runs a query. Close the rows before the next statement: lib/pq
// has room for one at a time on a connection.
func (t Tx) QueryContext(ctx context.Context, query string, args ...any) (rows *sql.Rows, err error) {
	err = t.s.use(ctx, query, func() error {
		if err := t.s.flush(ctx); err != nil {
			return err
		}
		if stmt := t.s.prepared(ctx, query, args); stmt != nil {
			rows, err = stmt.QueryContext(ctx, args...) //nolint:sqlclosecheck // the caller's to close
			return t.s.after(query, err)
		}
		rows, err = t.s.tx.QueryContext(ctx, query, args...) //nolint:sqlclosecheck // the caller's to close
		return err
	})
	if err == nil {
		t.s.open = ctx
		if t.s.shared != nil {
			t.s.shared.rows = rows
		}
	}
	return rows, err
}

// QueryRowContext runs a query for one row.
func (t Tx) QueryRowContext(ctx context.Context, query string, args ...any) (row *sql.Row) {
	err := t.s.use(ctx, query, func() error {
		if err := t.s.flush(ctx); err != nil {
			return err
		}
		ctx := t.s.within(ctx)
		if stmt := t.s.prepared(ctx, query, args); stmt != nil {
			row = stmt.QueryRowContext(ctx, args...)
			return t.s.after(query, row.Err())
		}
		row = t.s.tx.QueryRowContext(ctx, query, args...)
		return row.Err()
	})
	if row == nil {
		row = failedRow(err)
	} else if t.s.shared != nil {
		t.s.shared.row = row
	}
	return row
}

// deferred has a statement be pending, or returns nil.
func (s *txState) deferred(query string, args []any) sql.Result {
	if s.shared == nil || s.shared.pending == nil || len(args) == 0 || s.failed {
		return nil // behind what has failed, it shows by failing too
	}
	return s.shared.pending.add(query, s.stmts.all.writable(query), args, s.shared)
}

// flush sends what is pending.
func (s *txState) flush(ctx context.Context) error {
	if s.shared == nil {
		return nil
	}
	return s.shared.pending.flush(ctx)
}

// deferNoMore is for a handler that gets a statement of its own, of whose use nobody here hears.
func (s *txState) deferNoMore(ctx context.Context) error {
	err := s.flush(ctx)
	if s.shared != nil {
		s.shared.pending = nil
	}
	return err
}

// prepared returns a query that handlers run often, nil if it is not prepared. Without
// arguments it may be several.
func (s *txState) prepared(ctx context.Context, query string, args []any) *sql.Stmt {
	if s.stmts == nil || len(args) == 0 {
		return nil
	}
	return s.stmts.get(ctx, query)
}

func (s *txState) after(query string, err error) error {
	if err != nil {
		err = s.stmts.failed(query, err)
	}
	return err
}

// within returns the context for a statement. Where that ends with the handler's own, and
// somebody watches over the whole transaction, the driver need not watch over each statement.
func (s *txState) within(ctx context.Context) context.Context {
	if s.watched != nil && ctx.Done() == s.watched {
		return context.WithoutCancel(ctx)
	}
	return ctx
}

// PrepareContext prepares a statement for this transaction.
func (t Tx) PrepareContext(ctx context.Context, query string) (stmt *sql.Stmt, err error) {
	err = t.s.use(ctx, query, func() error {
		if err := t.s.deferNoMore(ctx); err != nil {
			return err
		}
		stmt, err = t.s.tx.PrepareContext(ctx, query)
		return err
	})
	t.s.lend(stmt)
	return stmt, err
}

// StmtContext returns a statement that was prepared on the sql.DB for use in
// this transaction. On a connection that has seen it before that costs no round
// trip.
func (t Tx) StmtContext(ctx context.Context, stmt *sql.Stmt) (own *sql.Stmt) {
	query, known := textOf(stmt)
	err := t.s.use(ctx, query, func() error {
		if !known {
			if err := t.s.cannotSee("StmtContext"); err != nil {
				return err
			}
		}
		if err := t.s.deferNoMore(ctx); err != nil {
			return err
		}
		own = t.s.tx.StmtContext(ctx, stmt)
		return nil
	})
	t.s.lend(own)
	if err != nil {
		own = new(sql.Tx).StmtContext(endedContext{context.Background(), err}, stmt)
	}
	return own
}

// lend notes a statement that is to be taken back.
func (s *txState) lend(stmt *sql.Stmt) {
	if s != nil && s.shared != nil && stmt != nil {
		s.shared.stmts = append(s.shared.stmts, stmt)
	}
}

// textOf reads the text of a prepared statement, which database/sql keeps but
// does not show. Should it keep it elsewhere one day, known is false.
func textOf(stmt *sql.Stmt) (query string, known bool) {
	field := reflect.ValueOf(stmt).Elem().FieldByName("query")
	if !field.IsValid() || field.Kind() != reflect.String {
		return "", false
	}
	return field.String(), true
}

// Exec is ExecContext without a context, for libraries that ask for it.
func (t Tx) Exec(query string, args ...any) (sql.Result, error) {
	return t.ExecContext(context.Background(), query, args...)
}

// Query is QueryContext without a context, for libraries that ask for it.
func (t Tx) Query(query string, args ...any) (*sql.Rows, error) {
	return t.QueryContext(context.Background(), query, args...)
}

// QueryRow is QueryRowContext without a context, for libraries that ask for it.
func (t Tx) QueryRow(query string, args ...any) *sql.Row {
	return t.QueryRowContext(context.Background(), query, args...)
}

// Raw calls fn with the driver's own connection, on which the transaction is
// open: with pgx's stdlib a *stdlib.Conn, whose Conn method returns the
// *pgx.Conn. What fn does there cannot be looked at beforehand, so Once checks
// afterwards that the transaction is still the one it began. If the connection is one
// that wraps the driver's and has a method Raw, as that of XSAM/otelsql has, fn gets the
// driver's.
func (t Tx) Raw(fn func(driverConn any) error) error {
	return t.s.use(context.Background(), "", func() error {
		if t.s.conn == nil {
			return errors.New("oncemill: Raw: a transaction given to ContextWithTx has no driver connection to offer")
		}
		if err := t.s.cannotSee("Raw"); err != nil {
			return err
		}
		return t.s.conn.Raw(func(driverConn any) error {
			if wrapper, ok := driverConn.(interface{ Raw() driver.Conn }); ok {
				driverConn = wrapper.Raw()
			}
			return fn(driverConn)
		})
	})
}

// cannotSee notes that something is run that cannot be looked at.
func (s *txState) cannotSee(method string) error {
	if s.shared != nil {
		return s.shared.refuse(method)
	}
	s.unseen = true
	return nil
}

// use runs one statement, unless the transaction has ended or the query would
// end it.
func (s *txState) use(ctx context.Context, query string, statement func() error) error {
	if s == nil {
		return ErrNoTx
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.ended {
		return ErrTxEnded
	}
	if err := ctx.Err(); err != nil {
		s.gaveUp = true // and nothing is sent
		return err
	}
	if err := s.check(query); err != nil {
		return err
	}
	err := statement()
	s.at, s.trouble, s.open = time.Now(), nil, nil
	// A statement whose own context has ended breaks the connection too, in the
	// drivers' hands, also if it has succeeded in that moment; that is the handler's doing.
	s.gaveUp = ctx.Err() != nil
	s.failed = err != nil || s.gaveUp
	if err != nil && !s.gaveUp && (isUnavailable(err) || IsSerialization(err)) {
		s.trouble = markUnavailable(err)
	}
	return err
}

// enter keeps the transaction from ending until leave is called.
func (s *txState) enter() (leave func(), err error) {
	s.mu.RLock()
	if s.ended {
		s.mu.RUnlock()
		return nil, ErrTxEnded
	}
	return s.mu.RUnlock, nil
}

// check refuses a query that would do harm. One that is prepared in this transaction was
// looked at before.
func (s *txState) check(query string) error {
	if s.stmts != nil && s.stmts.own[query] != nil {
		return nil
	}
	if controlsTransaction(query) {
		s.refused = fmt.Errorf("%w (refused: %.60q)", ErrTxControl, query)
		return s.refused
	}
	if s.shared != nil {
		return s.shared.check(query)
	}
	return nil
}

// busy reports whether a statement is running.
func (s *txState) busy() bool {
	if !s.mu.TryLock() {
		return true
	}
	s.mu.Unlock()
	return false
}

// abandon ends the use of a transaction that was idle for so long. Else it says how long
// that would still take.
func (s *txState) abandon(idle time.Duration) (wait time.Duration, ended bool) {
	if !s.mu.TryLock() {
		return idle, false // a statement is running
	}
	defer s.mu.Unlock()
	if wait = time.Until(s.at.Add(idle)); wait > 0 {
		return wait, false
	}
	s.ended = true
	return 0, true
}

// end waits for a statement that is still running and refuses later ones.
func (s *txState) end() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
}

// failedRow returns a row whose Scan returns err.
func failedRow(err error) *sql.Row {
	return new(sql.Tx).QueryRowContext(endedContext{context.Background(), err}, "")
}

// endedContext has ended with an error of our choice. It is how database/sql is
// made to put that error into a Row or a Stmt: a transaction looks at the
// context before anything else, and asks it for the reason.
type endedContext struct {
	context.Context
	err error
}

var closed = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

func (c endedContext) Done() <-chan struct{} { return closed }
func (c endedContext) Err() error            { return c.err }

// TxFromContext returns the transaction in which the handler runs that received
// ctx. If there is none, ok is false and the Tx fails with ErrNoTx.
func TxFromContext(ctx context.Context) (tx Tx, ok bool) {
	if h, ok := txn.From(ctx); ok {
		tx, ok := h.Executor.(Tx)
		return tx, ok
	}
	return Tx{}, false
}

// ContextWithTx returns ctx with tx in it, as Once would hand it to a handler.
// It is for unit tests: begin a transaction, call the handler, look at what it
// wrote, roll back; oncetest.Handle does that. Raw is not available in it.
func ContextWithTx(ctx context.Context, tx *sql.Tx) context.Context {
	return txn.With(ctx, &txn.Handle{Executor: Tx{&txState{tx: tx}}})
}
