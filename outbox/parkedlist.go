package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// lastTime stands for all times after it, infinity among them, which drivers cannot read.
var lastTime = time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)

// readable is a column of times as drivers can read it.
func readable(column string) string {
	return `least(greatest(` + column + `, '0001-01-01Z'), '9999-12-31Z')`
}

// timeText is a time as Postgres reads it, whatever its settings.
func timeText(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// List returns up to most rows, from the one after the given entry on: the zero Entry
// means from the first one on. Parked and deferred rows come in the order of their ids,
// scheduled ones in that in which they are due.
func (a *Admin) List(ctx context.Context, f Filter, after Entry, most int) (entries []Entry, err error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	if most < 1 {
		return nil, fmt.Errorf("outbox: list: most is %d: must be at least 1", most)
	}
	var args []any
	query := a.listSQL(f, after, most, &args)
	err = a.in(ctx, func(tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, query, args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			e := Entry{State: f.state()}
			if err := rows.Scan(&e.ID, &e.DedupID, &e.Topic, &e.UUID, &e.OrderingKey, &e.CreatedAt, &e.Attempts, &e.Since, &e.Error, &e.Size); err != nil {
				return err
			}
			entries = append(entries, e)
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil || f.state() == Scheduled {
			return err
		}
		return a.countBehind(ctx, tx, entries)
	})
	if err != nil {
		return nil, fmt.Errorf("outbox: list %s rows: %w", f.state(), withoutScheduled(err))
	}
	return entries, nil
}

func (a *Admin) listSQL(f Filter, after Entry, most int, args *[]any) string {
	if f.state() == Scheduled {
		return a.listScheduledSQL(f, after, most, args)
	}
	table, since := a.source(f)
	where := f.where(args)
	if after.ID != 0 {
		where += ` AND id > ` + argument(args, after.ID) + `::bigint`
	}
	return `
		SELECT id, dedup_id::text, topic, uuid, ordering_key, ` + createdAt + `, attempts, ` + readable(since) + `,
		       coalesce(last_error, ''), coalesce(octet_length(payload), 0)
		FROM ` + table + `
		WHERE ` + where + `
		ORDER BY id
		LIMIT ` + fmt.Sprint(most)
}

func (a *Admin) listScheduledSQL(f Filter, after Entry, most int, args *[]any) string {
	where := f.where(args)
	if after.ID != 0 {
		at := timeText(after.Since)
		if !after.Since.Before(lastTime) {
			at = "infinity"
		}
		where += ` AND (deliver_after, id) > (` + argument(args, at) + `::text::timestamptz, ` + argument(args, after.ID) + `::bigint)`
	}
	return `
		SELECT id, dedup_id::text, topic, uuid, ordering_key, ` + createdAt + `, 0, ` + readable("deliver_after") + `, '', coalesce(octet_length(payload), 0)
		FROM ` + a.table("scheduled") + `
		WHERE ` + where + `
		ORDER BY deliver_after, id
		LIMIT ` + fmt.Sprint(most)
}

// Count returns how many rows match.
func (a *Admin) Count(ctx context.Context, f Filter) (n int64, err error) {
	if err := f.check(); err != nil {
		return 0, err
	}
	var args []any
	table, _ := a.source(f)
	query := `SELECT count(*) FROM ` + table + ` WHERE ` + f.where(&args)
	err = a.in(ctx, func(tx *sql.Tx) error { return tx.QueryRowContext(ctx, query, args...).Scan(&n) })
	if err != nil {
		return 0, fmt.Errorf("outbox: count %s rows: %w", f.state(), withoutScheduled(err))
	}
	return n, nil
}

// StateOf returns what the row of the outbox with an id is: Parked, Deferred or Waiting. ""
// means that there is none.
func (a *Admin) StateOf(ctx context.Context, id int64) (state State, err error) {
	query := `
		SELECT CASE WHEN ` + Parked.where() + ` THEN 'parked' WHEN ` + Deferred.where() + ` THEN 'deferred' ELSE 'waiting' END
		FROM ` + a.table("outbox") + ` WHERE id = $1::bigint`
	err = a.in(ctx, func(tx *sql.Tx) error { return tx.QueryRowContext(ctx, query, id).Scan(&state) })
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("outbox: look for row %d: %w", id, err)
	}
	return state, nil
}

// A Group is the rows that have the same topic and the same error. Errors that differ in
// numbers alone, as in the size of a message, are the same.
type Group struct {
	Topic string
	Error string // of one of the rows
	Rows  int64
	First time.Time // the least Entry.Since of them
	Last  time.Time // the largest
}

// Summary sums up the rows by topic and error, and returns the largest groups, so many at
// most, and how many groups and rows there are.
func (a *Admin) Summary(ctx context.Context, f Filter, most int) (largest []Group, groups, rows int64, err error) {
	if err := f.check(); err != nil {
		return nil, 0, 0, err
	}
	var args []any
	table, since := a.source(f)
	lastError := `coalesce(last_error, '')`
	if f.state() == Scheduled {
		lastError = `''`
	}
	query := `
		SELECT topic, min(error), count(*), ` + readable("min(since)") + `, ` + readable("max(since)") + `, count(*) OVER (), (sum(count(*)) OVER ())::bigint
		FROM (SELECT topic, ` + lastError + ` AS error, ` + since + ` AS since FROM ` + table + ` WHERE ` + f.where(&args) + `) AS found
		GROUP BY topic, regexp_replace(error, '[0-9]+', '0', 'g')
		ORDER BY count(*) DESC, topic, min(error)
		LIMIT ` + argument(&args, most) + `::bigint`
	err = a.in(ctx, func(tx *sql.Tx) error {
		found, err := tx.QueryContext(ctx, query, args...)
		if err != nil {
			return err
		}
		defer found.Close()
		for found.Next() {
			var g Group
			if err := found.Scan(&g.Topic, &g.Error, &g.Rows, &g.First, &g.Last, &groups, &rows); err != nil {
				return err
			}
			largest = append(largest, g)
		}
		return found.Err()
	})
	if err != nil {
		return nil, 0, 0, fmt.Errorf("outbox: sum up %s rows: %w", f.state(), withoutScheduled(err))
	}
	return largest, groups, rows, nil
}
