package outbox

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"

	"github.com/oncemill/oncemill/schema"
)

const (
	// moveRows is how many scheduled rows one transaction moves.
	moveRows = 1000

	// moveTimeout bounds one transaction that moves rows, and the wait for its connection.
	moveTimeout = 30 * time.Second

	// farDue is what is taken for the time until a row is due that is due later still.
	farDue = time.Hour

	// minLook is the least time between two looks for rows that are new.
	minLook = 100 * time.Millisecond

	// noTableEvery is how often a Relay looks whether there is a table of scheduled rows
	// yet, or whether it may use it by now.
	noTableEvery = time.Minute
)

// A duePosition is a place in the table scheduled, in the order in which rows fall due. The
// zero value is before all rows.
type duePosition struct {
	at time.Time
	id int64
}

// after is the condition that a row lies behind the position.
func (p duePosition) after() string {
	if p.at.IsZero() {
		return `true`
	}
	return fmt.Sprintf(`(deliver_after, id) > ('%s'::timestamptz, '%d'::bigint)`, timeText(p.at), p.id)
}

// nextDue returns how long it is until the next row behind a position is due, by the
// database's clock: nothing or less if one is due now. any is false if there is none.
func nextDue(ctx context.Context, conn *sql.Conn, schemaName string, from duePosition) (wait time.Duration, any bool, err error) {
	var micros int64
	err = conn.QueryRowContext(ctx, nextDueSQL(schemaName, from)).Scan(&micros)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, false, nil
	}
	return time.Duration(micros) * time.Microsecond, err == nil, err
}

// nextDueSQL keeps times that cannot be subtracted, such as infinity, from failing it.
func nextDueSQL(schemaName string, from duePosition) string {
	return `
		SELECT (extract(epoch FROM least(greatest(deliver_after, now()), now() + ` + fmt.Sprintf(`interval '%d seconds'`, int(farDue.Seconds())) + `) - now()) * 1000000)::bigint
		FROM ` + schema.Quote(schemaName) + `.scheduled
		WHERE ` + from.after() + `
		ORDER BY deliver_after, id
		LIMIT 1`
}

// A move is what one transaction has done.
type move struct {
	moved int         // rows that are in the outbox now
	due   int         // rows that it looked at; the others are held by somebody, or behind such a row of their key
	last  duePosition // of the rows that it looked at
}

// moveDue moves the first rows behind a position that are due to the outbox, so many at
// most. There they get their ids, in the order in which they fell due.
//
// Only one transaction at a time moves, and does so in a statement after the one that took
// the lock, which sees what the one before has moved: otherwise the rows of a key could
// get ids in another order. While another one moves it does nothing. A row that somebody
// holds, who may be cancelling it, is left for later, and so are those of its key behind it.
func moveDue(ctx context.Context, tx *sql.Tx, schemaName string, from duePosition, most int) (m move, err error) {
	var mine bool
	lock := `SELECT pg_try_advisory_xact_lock(hashtextextended('oncemill schedule ' || $1, 0))`
	if err := tx.QueryRowContext(ctx, lock, schema.Quote(schemaName)).Scan(&mine); err != nil || !mine {
		return move{}, err
	}
	var at sql.NullTime
	var id sql.NullInt64
	err = tx.QueryRowContext(ctx, moveDueSQL(schemaName, from, most)).Scan(&m.moved, &m.due, &at, &id)
	if m.last = from; at.Valid {
		m.last = duePosition{at.Time, id.Int64}
	}
	return m, err
}

func moveDueSQL(schemaName string, from duePosition, most int) string {
	scheduled, outbox := schema.Quote(schemaName)+".scheduled", schema.Quote(schemaName)+".outbox"
	return `
		WITH due AS MATERIALIZED (
			SELECT id, deliver_after, ordering_key, row_number() OVER (ORDER BY deliver_after, id) AS n
			FROM ` + scheduled + `
			WHERE deliver_after <= now() AND ` + from.after() + `
			ORDER BY deliver_after, id
			LIMIT ` + fmt.Sprint(most) + `
		), locked AS MATERIALIZED (
			SELECT s.id, due.n, due.ordering_key FROM due JOIN ` + scheduled + ` s ON s.id = due.id
			WHERE s.deliver_after <= now()
			FOR UPDATE OF s SKIP LOCKED
		), held AS MATERIALIZED (
			SELECT ordering_key, min(n) AS n FROM due
			WHERE ordering_key IS NOT NULL AND id NOT IN (SELECT id FROM locked)
			GROUP BY ordering_key
		), free AS MATERIALIZED (
			SELECT id, n FROM locked
			WHERE NOT EXISTS (SELECT FROM held WHERE held.ordering_key = locked.ordering_key AND held.n < locked.n)
		), gone AS (
			DELETE FROM ` + scheduled + ` s USING free WHERE s.id = free.id
			RETURNING free.n, s.dedup_id, s.topic, s.uuid, s.metadata, s.ordering_key, s.payload
		), moved AS (
			INSERT INTO ` + outbox + ` (dedup_id, topic, uuid, metadata, ordering_key, payload)
			SELECT dedup_id, topic, uuid, metadata, ordering_key, payload FROM gone ORDER BY n
			RETURNING id
		), last AS (
			SELECT greatest(deliver_after, 'epoch') AS at, id FROM due ORDER BY n DESC LIMIT 1
		)
		SELECT (SELECT count(*) FROM moved), (SELECT count(*) FROM due), (SELECT at FROM last), (SELECT id FROM last)`
}

// moveSome moves some rows in a transaction of its own. Should this process freeze in it,
// Postgres ends it. The planner is kept to the indexes, and to looking up the rows that it
// has chosen, as for a batch of the relay.
func (r *Relay) moveSome(ctx context.Context, conn *sql.Conn, from duePosition) (m move, err error) {
	tx, err := conn.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return move{}, err
	}
	defer tx.Rollback()
	set := fmt.Sprintf(`
		SET LOCAL idle_in_transaction_session_timeout = %d;
		SET LOCAL enable_seqscan = off;
		SET LOCAL enable_bitmapscan = off;
		SET LOCAL enable_hashjoin = off;
		SET LOCAL enable_mergejoin = off`, r.idleTimeout().Milliseconds())
	if _, err := tx.ExecContext(ctx, set); err != nil {
		return move{}, err
	}
	if m, err = moveDue(ctx, tx, r.Schema, from, moveRows); err != nil {
		return move{}, err
	}
	return m, tx.Commit()
}

// onConn runs fn on a connection, within moveTimeout. One on which it fails is not used
// again: after a failover it may lead to a replica, where it would fail for ever.
func (r *Relay) onConn(ctx context.Context, fn func(ctx context.Context, conn *sql.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, moveTimeout)
	defer cancel()
	conn, err := r.DB.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err = fn(ctx, conn); err != nil {
		_ = conn.Raw(func(any) error { return driver.ErrBadConn })
	}
	return err
}
