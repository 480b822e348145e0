package oncemill

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
)

// transaction is a database transaction on a connection of its own from the
// pool.
type transaction struct {
	conn  *sql.Conn
	tx    *sql.Tx
	ended bool
}

// close rolls back what was not committed and gives the connection back. It
// runs deferred, so that it does so too when a handler panics.
func (t *transaction) close() {
	if t.ended {
		return
	}
	_ = t.rollback()
	_ = t.conn.Close()
}

// rollback fails where the connection is lost; then the server rolls back.
func (t *transaction) rollback() error {
	if t.tx == nil {
		return nil
	}
	err := t.tx.Rollback()
	if errors.Is(err, sql.ErrTxDone) {
		return nil
	}
	return err
}

// commit commits, and gives the connection back. No context can cancel it. If
// ctx ends before the answer is there, commit stops waiting and reports an
// unknown outcome; the COMMIT goes on.
func (t *transaction) commit(ctx context.Context) error {
	t.ended = true
	done := make(chan error, 1)
	go func() {
		err := t.tx.Commit()
		_ = t.conn.Close()
		done <- err
	}()
	select {
	case err := <-done:
		return commitError(err)
	case <-ctx.Done():
		return fmt.Errorf("no answer to COMMIT, the next delivery will tell its outcome: %w", context.Cause(ctx))
	}
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
