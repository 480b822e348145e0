package oncemill

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"time"
)

const (
	// LeastRetention is the least Inbox.Retention and Inbox.EventRetention: 10 minutes. It is
	// twice the margin between clocks, so that a message whose claim can
	// have been purged is always old enough to be compared with the watermark.
	LeastRetention = 2 * clockMargin

	// purgeBatch is how many rows one statement deletes. Small batches hold few row
	// locks, for some milliseconds, and let autovacuum keep up. A claim of a key that is
	// just being purged waits for that long.
	purgeBatch = 1000

	// rescanEvery is the time after which a sweep begins at the oldest row again.
	rescanEvery = time.Hour
)

// Purge deletes the claims of this Inbox's consumers that are older than
// Retention, once, and returns how many. Before it deletes any it moves the
// consumer's watermark, so that a message from that time is refused with
// ErrTooOld from then on. A consumer without such claims keeps its watermark: it
// may still be working off old messages, none of which it has forgotten.
//
// Where another process is purging the same consumer just then, Purge leaves the
// rest to that one.
func (in *Inbox) Purge(ctx context.Context) (claims int64, err error) {
	in.start.Do(in.setUp)
	in.consumers.Range(func(name, _ any) bool {
		var n int64
		n, err = in.purge(ctx, name.(string))
		claims += n
		return err == nil
	})
	if err != nil {
		return claims, fmt.Errorf("oncemill: purge: %w", markUnavailable(err))
	}
	return claims, nil
}

func (in *Inbox) purge(ctx context.Context, consumer string) (claims int64, err error) {
	for _, s := range in.sweeps(consumer) {
		for more := true; more; {
			b, err := s.batch(ctx)
			if err != nil {
				return claims, err
			}
			if s.table == "claims" && b.rows > 0 {
				claims += b.rows
				if in.Observer.Purged != nil {
					in.Observer.Purged(ctx, consumer, b.rows)
				}
			}
			more = b.full
		}
	}
	return claims, nil
}

// A sweep is the purge of one consumer's rows in one table, from old to new.
type sweep struct {
	in       *Inbox
	consumer string
	table    string
	query    string                                      // see sweepSQL
	begin    func(ctx context.Context, tx *sql.Tx) error // what comes before the first batch of a round; may be nil
	keep     time.Duration                               // for how long rows are kept
	margin   time.Duration                               // how far what is due lies before what the query compares it with

	// floor is the time of the oldest row that the next batch looks at, in microseconds
	// since 1970. Until vacuum has removed the rows that were deleted, a batch from the
	// beginning has to step over all of them, and a long transaction anywhere keeps
	// vacuum from it. Below it may be rows that somebody held at the time.
	floor   sql.NullInt64
	scanned time.Time // when the last batch from the beginning was
	midway  bool      // the last batch was full: the round goes on

	pace pace
}

// sweeps are what there is to be purged of a consumer. Errors of messages that have not
// failed for as long as claims are kept are forgotten, whether those succeeded in the end
// or not; events are, but for those of claims that are not settled yet.
func (in *Inbox) sweeps(consumer string) []*sweep {
	claims := &sweep{in: in, consumer: consumer, table: "claims", query: purgeClaimsSQL, keep: in.Retention + clockMargin, margin: clockMargin}
	claims.begin = claims.moveWatermark
	errors := &sweep{in: in, consumer: consumer, table: "handler_errors", query: purgeErrorsSQL, keep: in.Retention, margin: in.Retention}
	if in.EventRetention == math.MaxInt64 { // who keeps them for ever needs no right to delete them
		return []*sweep{claims, errors}
	}
	return []*sweep{
		claims, errors,
		{in: in, consumer: consumer, table: "events", query: purgeEventsSQL, keep: in.EventRetention, margin: in.EventRetention},
	}
}

var (
	purgeClaimsSQL = sweepSQL("claims", "settled_at", `SELECT purged_before AS at FROM {schema}.watermarks WHERE consumer = $1`, "")
	purgeErrorsSQL = sweepSQL("handler_errors", "last_at", `SELECT now() AS at`, "")
	// With NOT EXISTS, a table without statistics is joined to all that is unsettled.
	purgeEventsSQL = sweepSQL("events", "at", `SELECT now() AS at`, `
			AND (SELECT c.settled_at IS NULL FROM {schema}.claims c WHERE c.consumer = r.consumer AND c.key = r.key) IS NOT TRUE`)
)

// fromFloor is the condition that a row is not below the floor, which is in microseconds
// since 1970, or NULL.
func fromFloor(column, floor string) string {
	return column + ` >= COALESCE('epoch'::timestamptz + ` + floor + `::bigint * interval '1 microsecond', '-infinity')`
}

// sweepSQL deletes one batch of a consumer's rows that are older, by $3, than a time. It
// answers how many these were, the next floor, and how many microseconds that lies before
// what is due. Rows that somebody holds are left out, so that it waits for nobody, and is
// in no deadlock.
//
// The time is a subquery so that the index is read up to it and no further. With a join
// to the watermark in its place, a batch that is not full reads all claims.
func sweepSQL(table, column, since, and string) string {
	return `
WITH since AS (` + since + `), due AS MATERIALIZED (
	SELECT at - $3 * interval '1 microsecond' AS at FROM since
), purged AS (
	DELETE FROM {schema}.` + table + ` WHERE ctid = ANY (ARRAY(
		SELECT r.ctid FROM {schema}.` + table + ` r
		WHERE r.consumer = $1 AND r.` + column + ` < (SELECT at FROM due)
			AND ` + fromFloor("r."+column, "$2") + and + `
		ORDER BY r.` + column + `
		LIMIT $4
		FOR UPDATE OF r SKIP LOCKED))
	RETURNING ` + column + ` AS at
), batch AS (
	SELECT count(*) AS rows, CASE WHEN count(*) < $4 THEN (SELECT at FROM due) ELSE GREATEST(max(at), 'epoch') END AS floor
	FROM purged
)
SELECT rows, (EXTRACT(EPOCH FROM floor) * 1000000)::bigint, (EXTRACT(EPOCH FROM (SELECT at FROM due) - floor) * 1000000)::bigint
FROM batch`
}

// swept is what a batch has done.
type swept struct {
	rows   int64
	full   bool          // there may be further rows that are due
	span   time.Duration // how much of the rows' time it has gone through
	behind time.Duration // how much there still is
	took   time.Duration
}

// batch purges one batch, or nothing while somebody else purges the same.
func (s *sweep) batch(ctx context.Context) (b swept, err error) {
	begun := time.Now()
	if begun.Sub(s.scanned) >= rescanEvery {
		s.floor, s.scanned = sql.NullInt64{}, begun
	}
	if !s.midway && s.begin != nil {
		if mine, err := s.inTurn(ctx, s.begin); err != nil || !mine {
			return b, err
		}
	}
	var floor, behind sql.NullInt64
	mine, err := s.inTurn(ctx, func(ctx context.Context, tx *sql.Tx) error {
		return tx.QueryRowContext(ctx, s.in.sql.in(s.query), s.consumer, s.floor, s.margin.Microseconds(), purgeBatch).
			Scan(&b.rows, &floor, &behind)
	})
	if err != nil || !mine {
		s.midway = false
		return swept{}, err
	}
	b.full, b.took = b.rows == purgeBatch, time.Since(begun)
	b.behind = time.Duration(behind.Int64) * time.Microsecond
	if s.floor.Valid {
		b.span = time.Duration(floor.Int64-s.floor.Int64) * time.Microsecond
	}
	s.floor, s.midway = floor, b.full
	return b, nil
}

// inTurn runs fn in a transaction, unless another one of the same sweep is under way: then
// it is not this one's turn. Should this process freeze, Postgres ends it.
//
// Only an index is read, in its order, whatever the planner thinks of a table that was
// filled just now. The disk is not waited for: what a crash undoes is purged again, and a
// claim does not go without the watermark that was moved before it.
func (s *sweep) inTurn(ctx context.Context, fn func(context.Context, *sql.Tx) error) (mine bool, err error) {
	err = s.in.readCommitted(ctx, func(tx *sql.Tx) error {
		var settings string
		err := tx.QueryRowContext(ctx, `
SELECT pg_try_advisory_xact_lock(hashtextextended('oncemill purge ' || $1 || '.' || $2 || ' ' || $3, 0)),
	concat(set_config('idle_in_transaction_session_timeout', $4, true), set_config('synchronous_commit', 'off', true),
		set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true), set_config('enable_sort', 'off', true),
		set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true))`,
			s.in.sql.schema, s.table, s.consumer, milliseconds(s.in.IdleTimeout)).Scan(&mine, &settings)
		if err != nil || !mine {
			return err
		}
		return fn(ctx, tx)
	})
	return mine, err
}

// moveWatermark says what will be deleted. It commits before anything is: see
// watermarkSQL.
func (s *sweep) moveWatermark(ctx context.Context, tx *sql.Tx) error {
	_, err := tx.ExecContext(ctx, s.in.sql.in(`
INSERT INTO {schema}.watermarks AS w (consumer, purged_before)
SELECT $1, now() - $2 * interval '1 microsecond'
WHERE EXISTS (
	SELECT FROM {schema}.claims
	WHERE consumer = $1 AND settled_at < now() - ($2 + $3) * interval '1 microsecond' AND `+fromFloor("settled_at", "$4")+`)
ON CONFLICT (consumer) DO UPDATE
SET purged_before = GREATEST(w.purged_before, EXCLUDED.purged_before)`),
		s.consumer, s.in.Retention.Microseconds(), clockMargin.Microseconds(), s.floor)
	return err
}
