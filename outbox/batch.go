package outbox

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"

	"github.com/oncemill/oncemill/internal/durable"
)

// A batch is under way: a transaction of its own holds its rows.
type batch struct {
	*fetched
	conn     *sql.Conn
	tx       *sql.Tx
	ctx      context.Context // of the transaction
	end      context.CancelFunc
	begun    time.Time
	due      time.Time // when the Sink's time is over
	again    bool      // whether a round should follow at once
	verdicts *verdicts // of the Sink

	server       int64         // see beginSQL
	waits        bool          // its COMMIT does, for a synchronous standby
	confirmation *confirmation // nil: none is needed
}

// take fetches a batch of about so many bytes. It is nil if no row is due; then
// more says whether a round should follow at once. ctx bounds the wait for a
// connection. What the batch has fetched is not to be published before its confirmation.
func (l *loop) take(ctx context.Context, bytes int) (b *batch, more bool, err error) {
	leave, err := l.standby.enter(ctx, l.DB)
	if err != nil {
		return nil, false, err
	}
	if b, more, err = l.takeRows(ctx, bytes); b == nil {
		leave()
		return nil, more, err
	}
	b.confirmation = l.confirm(b, leave)
	return b, more, nil
}

// takeRows is take without the confirmation.
func (l *loop) takeRows(ctx context.Context, bytes int) (b *batch, more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	l.source.pipelined(l.pace.full > 0)
	// After a restart of the database all idle connections of the pool are dead.
	for tries := l.DB.Stats().Idle; ; tries-- {
		conn, err := l.DB.Conn(ctx)
		if err != nil {
			return nil, false, fmt.Errorf("database: connect: %w", err)
		}
		b := &batch{conn: conn, begun: time.Now()}
		err = l.fill(b, bytes)
		if err == nil && b.read() > 0 {
			return b, b.again, nil
		}
		b.close(err)
		if err == nil {
			l.pace.full = 0
			return nil, b.again, nil
		}
		l.source.reset()
		if tries <= 0 || !errors.Is(err, errDead) {
			return nil, false, err
		}
	}
}

// errDead means that a connection was dead before anything was done with it.
var errDead = errors.New("connection from the pool is dead")

// fill begins a batch's transaction and fetches its rows.
func (l *loop) fill(b *batch, bytes int) error {
	b.ctx, b.end = context.WithTimeout(l.settling, l.idleTimeout()+connectTimeout)
	var err error
	if err = l.begin(b); err != nil {
		if errors.Is(err, driver.ErrBadConn) {
			err = fmt.Errorf("%w: %w", errDead, err)
		}
		return fmt.Errorf("database: begin: %w", err)
	}
	l.standby.none.Store(!b.waits)
	l.meet(b.server)
	begun := time.Now()
	if first, yes := l.aside.expire(begun); yes {
		l.source.putBack(first)
	}
	if b.fetched, err = l.fetch(b.ctx, b.tx, bytes); err != nil {
		return fmt.Errorf("database: fetch rows: %w", err)
	}
	now := time.Now()
	b.due = now.Add(l.publishTimeout())
	l.pace.learn(b.fetched)
	if b.again, err = l.source.advance(b.ctx, b.tx, b.fetched, begun, now); err != nil {
		return fmt.Errorf("database: look for rows to come: %w", err)
	}
	return nil
}

// meet has all be forgotten that is known of the table if it is on another server than
// before, or one that was started again. It may lack transactions that were seen on the
// other one, and give their ids once more: to rows below the floor. Nothing need have
// failed on the way, since connections come from a pool.
func (l *loop) meet(server int64) {
	if server != l.server {
		l.server = server
		l.source.reset()
	}
}

// begin opens a transaction that Postgres ends by itself should this process
// freeze in it. The planner is kept to the primary key: for a table that has
// just been filled and has no statistics yet, it would otherwise choose to sort
// all rows for every batch. Nor is a statement compiled that runs for a few milliseconds,
// for which that would take longer.
func (l *loop) begin(b *batch) error {
	tx, err := b.conn.BeginTx(b.ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return err
	}
	var set string
	row := tx.QueryRowContext(b.ctx, fmt.Sprintf(beginSQL, l.idleTimeout().Milliseconds()))
	if err := row.Scan(&b.server, &b.waits, &set); err != nil {
		tx.Rollback()
		return err
	}
	b.tx = tx
	return nil
}

// beginSQL returns which server this is, as the time of its start, and whether COMMITs wait
// for a synchronous standby.
const beginSQL = `
	SELECT ` + serverStart + `, coalesce(` + durable.Waits + `, false), concat(
		set_config('idle_in_transaction_session_timeout', '%d', true),
		set_config('jit', 'off', true),
		set_config('enable_seqscan', 'off', true),
		set_config('enable_bitmapscan', 'off', true))`

// settle writes down what became of a batch that is published.
func (l *loop) settle(b *batch) error {
	err := b.verdicts.settle(b.ctx, b.tx, l.Relay)
	if err != nil {
		err = fmt.Errorf("database: settle published rows: %w", err)
	} else if err = b.tx.Commit(); err != nil {
		err = fmt.Errorf("database: commit published rows: %w", err)
	}
	b.close(err)
	if err != nil {
		l.source.reset()
		return err
	}
	l.tell(b.fetched, b.verdicts, time.Since(b.begun))
	return nil
}

// giveBack leaves a batch's rows to whoever fetches them next.
func (l *loop) giveBack(b *batch) {
	b.close(nil)
	l.source.putBack(b.first)
}

// close ends a batch's transaction, if it has not ended, and returns its
// connection. err is that of the database, if it is to blame: after a failover
// the connection may lead to a server that is a replica now, and would fail for
// ever without breaking.
func (b *batch) close(err error) {
	b.confirmation.end()
	if b.tx != nil {
		b.tx.Rollback()
	}
	if err != nil {
		_ = b.conn.Raw(func(any) error { return driver.ErrBadConn })
	}
	b.conn.Close()
	b.end()
}
