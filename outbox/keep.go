package outbox

import (
	"context"
	"database/sql"
	"fmt"
	"strconv"
	"time"

	"github.com/oncemill/oncemill/internal/dbcheck"
	"github.com/oncemill/oncemill/internal/grants"
	"github.com/oncemill/oncemill/schema"
)

const (
	// purgeRows is how many kept rows one statement deletes, and purgeShare the part of
	// the time that purging takes while there is more to do: one of so many.
	purgeRows  = 1000
	purgeShare = 10

	// minPurge and maxPurge bound the pause between purges that have found all there was.
	minPurge = time.Second
	maxPurge = time.Minute

	// purgeRescan is how often a purge begins at the oldest row again.
	purgeRescan = time.Hour
)

// removePublished takes rows out of the outbox that are published, given their ids in
// order, and keeps them if that is asked for.
func (r *Relay) removePublished(ctx context.Context, tx *sql.Tx, ids []int64) error {
	if r.Keep > 0 {
		return removeKeeping(ctx, tx, r.Schema, ids)
	}
	return remove(ctx, tx, r.table(), ids)
}

// removeKeeping is remove, but for that the rows go to the table published, in the same
// transaction. They get the time of the statement, at which the broker has them: the
// transaction began before. All rows of a batch have the same time, and so in the order of
// time and id those of an ordering key are in theirs.
func removeKeeping(ctx context.Context, tx *sql.Tx, schemaName string, ids []int64) error {
	if len(ids) == 0 {
		return nil
	}
	var query, single []byte
	for len(ids) > 0 {
		n := run(ids)
		if n >= longRun {
			query = append(query, keepSQL(schemaName, fmt.Sprintf(`id BETWEEN '%d'::bigint AND '%d'::bigint`, ids[0], ids[n-1]))...)
			query = append(query, ';')
		} else {
			for _, id := range ids[:n] {
				single = append(strconv.AppendInt(single, id, 10), ',')
			}
		}
		ids = ids[n:]
	}
	if n := len(single); n > 0 {
		query = append(query, keepSQL(schemaName, `id = ANY ('{`+string(single[:n-1])+`}'::bigint[])`)...)
	}
	_, err := tx.ExecContext(ctx, string(query))
	return err
}

func keepSQL(schemaName, where string) string {
	tables := schema.Quote(schemaName)
	return `
		WITH gone AS (
			DELETE FROM ` + tables + `.outbox WHERE ` + where + `
			RETURNING id, dedup_id, topic, uuid, metadata, ordering_key, payload, created_at
		)
		INSERT INTO ` + tables + `.published (published_at, id, dedup_id, topic, uuid, metadata, ordering_key, payload, created_at)
		SELECT statement_timestamp(), id, dedup_id, topic, uuid, metadata, ordering_key, payload, created_at FROM gone`
}

// checkKeep finds out whether rows can be kept: there is a table for them, and the rights.
func (r *Relay) checkKeep(ctx context.Context) error {
	table := schema.Quote(r.Schema) + ".published"
	found, err := dbcheck.HasTable(ctx, r.DB, table)
	if err != nil {
		return fmt.Errorf("outbox: look for table %s: %w", table, err)
	}
	if !found {
		return fmt.Errorf("outbox: Relay.Keep is set: %w: there is no table %s before schema version 6 (run `oncemill migrate`, or leave Keep at 0, --keep out)", ErrSchema, table)
	}
	if err := grants.On("published", "SELECT, INSERT, UPDATE (id), DELETE").Check(ctx, r.DB, r.Schema, "keep rows"); err != nil {
		return fmt.Errorf("outbox: Relay.Keep is set: %w", err)
	}
	return nil
}

// purgeKept deletes rows that were published longer ago than keep, until ctx ends.
func (r *Relay) purgeKept(ctx context.Context, keep time.Duration) {
	p := purger{Relay: r, keep: keep, trouble: trouble{
		what: "outbox relay: cannot delete messages that were kept for long enough, will try again until it can", over: "outbox relay: deleting kept messages works again",
	}}
	for ctx.Err() == nil {
		begun := time.Now()
		var full bool
		err := r.onConn(ctx, func(ctx context.Context, conn *sql.Conn) (err error) {
			full, err = p.batch(ctx, conn)
			return err
		})
		if ctx.Err() != nil {
			return
		}
		pause := min(max(keep/100, minPurge), maxPurge)
		if full {
			pause = (purgeShare - 1) * time.Since(begun)
		}
		if err != nil {
			p.floor = time.Time{}
		}
		p.report(orDefault(r.Logger), err)
		wait(ctx, p.pause(pause), nil)
	}
}

// A purger is one run of purgeKept.
type purger struct {
	*Relay
	trouble
	keep    time.Duration
	floor   time.Time // before it there is nothing but what was deleted, or what somebody held
	scanned time.Time // when a purge last began at the oldest row
}

// batch deletes some rows, unless another process is at it. full means that there may be
// more of them.
func (p *purger) batch(ctx context.Context, conn *sql.Conn) (full bool, err error) {
	if now := time.Now(); now.Sub(p.scanned) >= purgeRescan {
		p.floor, p.scanned = time.Time{}, now
	}
	tx, err := conn.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return false, err
	}
	defer tx.Rollback()
	set := fmt.Sprintf(`
		SET LOCAL idle_in_transaction_session_timeout = %d;
		SET LOCAL synchronous_commit = off;
		SET LOCAL enable_seqscan = off;
		SET LOCAL enable_bitmapscan = off`, p.idleTimeout().Milliseconds())
	if _, err := tx.ExecContext(ctx, set); err != nil {
		return false, err
	}
	n, last, err := deleteKept(ctx, tx, p.Schema, p.keep, p.floor)
	if err == nil {
		err = tx.Commit()
	}
	if err == nil && !last.IsZero() {
		p.floor = last
	}
	return n == purgeRows, err
}

// deleteKept deletes the first rows from a time on that were published longer ago than
// keep. It returns how many, and when the last of them was published. While another
// transaction does it, it does nothing.
func deleteKept(ctx context.Context, tx *sql.Tx, schemaName string, keep time.Duration, from time.Time) (n int, last time.Time, err error) {
	tables := schema.Quote(schemaName)
	var mine bool
	lock := `SELECT pg_try_advisory_xact_lock(hashtextextended('oncemill published ' || $1, 0))`
	if err := tx.QueryRowContext(ctx, lock, tables).Scan(&mine); err != nil || !mine {
		return 0, last, err
	}
	floor := `true`
	if !from.IsZero() {
		floor = `published_at >= '` + timeText(from) + `'::timestamptz`
	}
	var found sql.NullTime
	err = tx.QueryRowContext(ctx, fmt.Sprintf(`
		WITH gone AS (
			DELETE FROM %[1]s.published WHERE ctid = ANY (ARRAY(
				SELECT ctid FROM %[1]s.published
				WHERE published_at < now() - '%[2]d'::bigint * interval '1 microsecond' AND %[3]s
				ORDER BY published_at, id, dedup_id
				LIMIT %[4]d
				FOR UPDATE SKIP LOCKED))
			RETURNING published_at
		)
		SELECT count(*), greatest(max(published_at), '0001-01-01Z') FROM gone`, tables, keep.Microseconds(), floor, purgeRows)).Scan(&n, &found)
	return n, found.Time, err
}
