package oncemill

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"
)

// rollbackGrace is how long a ROLLBACK may take once nobody wants to wait any
// more. It takes as long only if the server does not answer.
const rollbackGrace = time.Second

// transaction is a database transaction on a connection of its own from the
// pool. BEGIN, COMMIT and ROLLBACK run in goroutines: no context can cancel them,
// but one can end the wait.
type transaction struct {
	conn   *sql.Conn
	tx     *sql.Tx
	spoilt bool // the connection is not to be used again

	mu    sync.Mutex
	ended bool // COMMIT or ROLLBACK is sent, or about to be

	// interrupt breaks off the statement under way, and with it the transaction. Never
	// once COMMIT is sent: one that is cancelled while it waits for a synchronous standby
	// succeeds without the standby.
	interrupt context.CancelFunc
}

// begin begins a transaction. When ctx ends it does not wait for the pool any more, nor for
// a server that does not answer to a new connection or to BEGIN.
func begin(ctx context.Context, db *sql.DB) (*transaction, error) {
	whole, interrupt := context.WithCancel(context.WithoutCancel(ctx))
	t := &transaction{interrupt: interrupt}
	begun := make(chan error, 1)
	go func() {
		err := errNotBegun // if this goroutine ends in the driver
		defer func() { begun <- err }()
		err = t.begin(ctx, whole, db)
	}()
	select {
	case err := <-begun:
		return t, err
	case <-ctx.Done():
		go func() {
			if <-begun == nil {
				_ = t.tx.Rollback()
				_ = t.conn.Close()
				interrupt()
			}
		}()
		return nil, context.Cause(ctx)
	}
}

var errNotBegun = errors.New("the driver has ended the goroutine that begins a transaction")

// begin takes a connection while ctx lasts, and begins on it what may last as long as whole.
func (t *transaction) begin(ctx, whole context.Context, db *sql.DB) (err error) {
	if t.conn, err = db.Conn(ctx); err != nil {
		t.interrupt()
		return err
	}
	if ctx.Err() != nil { // drivers may not look
		_ = t.conn.Close()
		t.interrupt()
		return context.Cause(ctx)
	}
	t.tx, err = t.conn.BeginTx(whole, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		t.interrupt()
		discard(t.conn)
	}
	return err
}

// close rolls back what was not committed and gives the connection back. It
// runs deferred, so that it does so too when a handler panics.
func (t *transaction) close(ctx context.Context) {
	if !t.ended {
		_ = t.rollback(ctx)
	}
}

func (t *transaction) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
}

// breakOff interrupts the statement of s that is running, if there is one. A COMMIT it does
// not reach, also if that begins in this moment.
func (t *transaction) breakOff(s *txState) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.ended && s.busy() {
		t.interrupt()
	}
}

// rollback fails where the connection is lost; then the server rolls back.
func (t *transaction) rollback(ctx context.Context) error {
	t.end()
	return answer(ctx, func() error {
		err := t.tx.Rollback()
		if t.spoilt {
			discard(t.conn)
		} else {
			_ = t.conn.Close()
		}
		t.interrupt() // there is nothing left to interrupt
		return err
	})
}

// errSilent is for what the server has not answered by the time that nobody waits any more.
var errSilent = errors.New("no answer from the database")

// answer returns what ask does, which waits for the server, but waits no longer than
// rollbackGrace when ctx has ended: drivers do not return before there is an answer.
func answer(ctx context.Context, ask func() error) error {
	done := make(chan error, 1)
	go func() { done <- ask() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	grace := time.NewTimer(rollbackGrace)
	defer grace.Stop()
	select {
	case err := <-done:
		return err
	case <-grace.C:
		return errSilent
	}
}

// commit commits, and gives the connection back. If ctx ends before the answer
// is there, it reports an unknown outcome; the COMMIT goes on.
func (t *transaction) commit(ctx context.Context) error {
	t.end()
	done := make(chan error, 1)
	go func() {
		err := t.tx.Commit()
		_ = t.conn.Close()
		t.interrupt()
		done <- err
	}()
	select {
	case err := <-done:
		return commitError(err)
	case <-ctx.Done():
		return fmt.Errorf("no answer to COMMIT, the next delivery will tell its outcome: %w", context.Cause(ctx))
	}
}

// watchesTransactions reports whether the driver breaks off a statement when the context
// ends with which its transaction began. lib/pq does: it watches over that in one
// goroutine, where a statement's context costs one for each statement.
func watchesTransactions(db *sql.DB) bool {
	t := reflect.TypeOf(db.Driver())
	if t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t != nil && t.PkgPath() == "github.com/lib/pq"
}

// isSpoilt reports whether an error of the claim statement tells of a session
// that will not work for the next message either: its server has become a
// replica, or a handler has changed its role or dropped its prepared statements.
func isSpoilt(err error) bool {
	switch sqlState(err) {
	case "", "55P03", "57014", "40001", "40P01":
		return false // "": the driver knows best
	}
	return true
}

// discard takes a connection out of the pool.
func discard(conn *sql.Conn) {
	_ = conn.Raw(func(any) error { return driver.ErrBadConn })
	_ = conn.Close()
}

// commitError names the error of a transaction that could only be rolled back
// because a statement in it had failed. Postgres itself calls that a success
// with the tag ROLLBACK; the drivers notice, each in its own words, which are
// compared as text so that neither driver has to be imported here.
func commitError(err error) error {
	if err == nil {
		return nil
	}
	for _, words := range []string{
		"could not complete operation in a failed transaction", // lib/pq
		"commit unexpectedly resulted in rollback",             // pgx
	} {
		if strings.Contains(err.Error(), words) {
			return fmt.Errorf("%w: %w", ErrTxAborted, err)
		}
	}
	return err
}
