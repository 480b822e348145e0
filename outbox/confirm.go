package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/oncemill/oncemill/internal/dbcheck"
	"github.com/oncemill/oncemill/internal/durable"
)

// A row that can be read need not be on the synchronous standby. A COMMIT that waits for
// that is on disk already, and if it is waited for no longer, since its backend was
// terminated or the server was killed and started again, its transaction is as committed as
// any other. If its row was published and the standby took over without ever having
// received it, there would be a message of a transaction that never happened; and where
// that is repeated, another message beside it.
//
// A standby receives the log in its order. A transaction that begins after the fetch, on
// the same server, and then commits is behind all that was fetched: when its COMMIT has
// returned, the standby has that. It waits only if there is something of its transaction
// in the log, for which having an id is not enough; hence a message, of which nobody takes
// notice. The batch's own transaction cannot be it: its end would give the rows free.
//
// A server that has taken over has another time of its start, and the statement then writes
// nothing and returns no row.
const confirmSQL = `SELECT pg_logical_emit_message(true, 'oncemill'::text, ''::text) WHERE ` + serverStart + ` = %d`

// serverStart is, in SQL, when the server was started, in microseconds.
const serverStart = `(extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint`

// A confirmation, that the standby has what a batch has fetched, is under way or there.
type confirmation struct {
	cancel context.CancelFunc
	done   chan struct{}
	err    error // once done
}

// confirm begins to wait for the standby, where there is one, while the batch before is
// published. leave is called at the end.
func (l *loop) confirm(b *batch, leave func()) *confirmation {
	if !b.waits {
		leave()
		return nil
	}
	ctx, cancel := context.WithDeadline(b.ctx, b.due)
	c := &confirmation{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		defer leave()
		c.err = l.awaitStandby(ctx, b.server)
	}()
	return c
}

// wait returns nil once the batch may be published.
func (c *confirmation) wait(ctx context.Context) error {
	if c == nil {
		return nil
	}
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *confirmation) end() {
	if c != nil {
		c.cancel()
		<-c.done
	}
}

func (l *loop) awaitStandby(ctx context.Context, server int64) error {
	if l.DB.Stats().MaxOpenConnections == 1 {
		return errOneConnection
	}
	result, err := l.DB.ExecContext(ctx, fmt.Sprintf(confirmSQL, server))
	if ctx.Err() != nil { // a COMMIT whose wait is cancelled succeeds
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("database: nothing is published before the synchronous standby has it: %w%s", err, ofStandby(err))
	}
	switch n, err := result.RowsAffected(); {
	case err != nil:
		return fmt.Errorf("database: nothing is published before the synchronous standby has it: %w", err)
	case n != 1:
		return errOtherServer
	}
	return nil
}

func ofStandby(err error) string {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return " (does one stream that synchronous_standby_names has? See pg_stat_replication)"
	case dbcheck.SQLState(err) == "42501":
		return " (GRANT EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, text) to this role)"
	}
	return ""
}

var (
	errOtherServer = errors.New("database: it is another server than the one that rows were fetched from, or was started again: they are not published before they are fetched again")

	errOneConnection = errors.New("outbox: Relay.DB has a pool of one connection, and COMMITs wait for a synchronous standby (synchronous_standby_names): the Relay needs two then, the second one to learn that the standby has a message before it is published (call DB.SetMaxOpenConns with 2 or more)")
)

// checkPool returns nil if the pool has as many connections as a relay needs.
func (r *Relay) checkPool(ctx context.Context) error {
	if r.DB.Stats().MaxOpenConnections != 1 {
		return nil
	}
	var waits bool
	if err := r.DB.QueryRowContext(ctx, `SELECT coalesce(`+durable.Waits+`, false)`).Scan(&waits); err != nil {
		return fmt.Errorf("outbox: ask whether COMMITs wait for a standby: %w", err)
	}
	if waits {
		return errOneConnection
	}
	return nil
}

// A standby is what the loops of a Relay have in common where COMMITs wait for one.
type standby struct {
	none atomic.Bool   // the last transaction has seen that they do not
	turn chan struct{} // one loop at a time takes a batch, if connections are few
	few  int           // fewer than this
}

// newStandby is for a number of loops. Each can have two batches under way, and a
// confirmation for each of them.
func newStandby(loops int) *standby {
	return &standby{turn: make(chan struct{}, 1), few: 4 * loops}
}

// enter waits until a batch can be taken so that its confirmation will get a connection: if
// all were held by batches that wait for one, none would ever. All others are given back
// by and by. leave is to be called when the confirmation is there.
func (s *standby) enter(ctx context.Context, db *sql.DB) (leave func(), err error) {
	most := db.Stats().MaxOpenConnections
	if s.none.Load() || most == 0 || most >= s.few {
		return func() {}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	select {
	case s.turn <- struct{}{}:
		return func() { <-s.turn }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("database: wait for other batches, since DB has only %d connections: %w", most, ctx.Err())
	}
}

// leaves returns how many connections there may be for batches, 0 if they are not limited.
func (s *standby) leaves(db *sql.DB) int {
	most := db.Stats().MaxOpenConnections
	if most > 1 && !s.none.Load() {
		return most - 1
	}
	return most
}
