package outbox

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	"github.com/oncemill/oncemill/internal/dbcheck"
)

// countedRows is up to how many rows Status counts.
const countedRows = 100_000

// A Count is a number of rows, and how exact it is: Status does not count more than
// 100,000.
type Count struct {
	Rows     int64    `json:"rows"`
	Accuracy Accuracy `json:"accuracy"`
}

// Accuracy says what a Count is worth.
type Accuracy string

const (
	Exact    Accuracy = "exact"
	AtLeast  Accuracy = "at least" // among the 100,000 oldest rows or so; there may be others
	Estimate Accuracy = "estimate" // the query planner's, from the table's size and statistics
)

// A Status sums up the tables of the outbox.
type Status struct {
	Waiting  Count     // rows that are neither parked nor deferred
	Oldest   time.Time // when the oldest of the rows was written that are not parked; zero if there is none
	Deferred Count
	Parked   Count

	// Scheduled and Published are nil before schema version 6.
	Scheduled *Count
	NextDue   time.Time // when the next scheduled row is due; zero if there is none
	Published *Count    // rows that relays have kept
	Kept      time.Time // when the oldest of those was published; zero if there is none

	At time.Time // when that was, by the database's clock
}

// Status looks at up to 100,000 rows of each table, so that it takes a moment however many
// there are.
func (a *Admin) Status(ctx context.Context) (s Status, err error) {
	err = a.in(ctx, func(tx *sql.Tx) error {
		if err := a.outboxStatus(ctx, tx, &s); err != nil {
			return err
		}
		if later, err := dbcheck.HasTable(ctx, tx, a.table("scheduled")); err != nil || !later {
			return err
		}
		s.Scheduled, s.Published = new(Count), new(Count)
		if s.NextDue, err = a.tableStatus(ctx, tx, "scheduled", "deliver_after", s.Scheduled); err != nil {
			return err
		}
		s.Kept, err = a.tableStatus(ctx, tx, "published", "published_at", s.Published)
		return err
	})
	if err != nil {
		return s, fmt.Errorf("outbox: status: %w", err)
	}
	return s, nil
}

// outboxStatus counts what is among the oldest rows, and all that is parked.
func (a *Admin) outboxStatus(ctx context.Context, tx *sql.Tx, s *Status) error {
	table := a.table("outbox")
	var looked int64
	var oldest sql.NullTime
	err := tx.QueryRowContext(ctx, fmt.Sprintf(`
		SELECT count(*), count(*) FILTER (WHERE parked_at IS NULL AND not_before IS NULL), count(*) FILTER (WHERE %[3]s),
		       min(%[4]s) FILTER (WHERE parked_at IS NULL), clock_timestamp()
		FROM (SELECT parked_at, not_before, created_at FROM %[1]s ORDER BY id LIMIT %[2]d) AS oldest`,
		table, countedRows+1, Deferred.where(), createdAt)).Scan(&looked, &s.Waiting.Rows, &s.Deferred.Rows, &oldest, &s.At)
	if err != nil {
		return err
	}
	s.Oldest = oldest.Time
	parked := fmt.Sprintf(`SELECT count(*) FROM (SELECT FROM %s WHERE %s LIMIT %d) AS parked`, table, Parked.where(), countedRows+1)
	if err := tx.QueryRowContext(ctx, parked).Scan(&s.Parked.Rows); err != nil {
		return err
	}
	s.Waiting.Accuracy, s.Deferred.Accuracy, s.Parked.Accuracy = Exact, Exact, Exact
	if s.Parked.Rows > countedRows {
		s.Parked.Accuracy = AtLeast
	}
	if looked <= countedRows {
		return nil
	}
	s.Deferred.Accuracy = AtLeast
	all, err := estimate(ctx, tx, table)
	s.Waiting = atLeast(s.Waiting.Rows, all-s.Parked.Rows-s.Deferred.Rows)
	return err
}

// atLeast is a number of rows that is larger than the one that was counted, given an
// estimate of it. That is of no use for a table that has grown and has no statistics yet.
func atLeast(counted, estimated int64) Count {
	if estimated <= counted {
		return Count{counted, AtLeast}
	}
	return Count{estimated, Estimate}
}

// tableStatus counts the rows of a table, and returns the least time of a column.
func (a *Admin) tableStatus(ctx context.Context, tx *sql.Tx, name, column string, c *Count) (first time.Time, err error) {
	table := a.table(name)
	count := fmt.Sprintf(`SELECT count(*) FROM (SELECT FROM %s LIMIT %d) AS counted`, table, countedRows+1)
	if err := tx.QueryRowContext(ctx, count).Scan(&c.Rows); err != nil {
		return first, err
	}
	if c.Accuracy = Exact; c.Rows > countedRows {
		all, err := estimate(ctx, tx, table)
		if err != nil {
			return first, err
		}
		*c = atLeast(c.Rows, all)
	}
	var found sql.NullTime
	err = tx.QueryRowContext(ctx, `SELECT (SELECT `+readable(column)+` FROM `+table+` ORDER BY `+column+` LIMIT 1)`).Scan(&found)
	return found.Time, err
}

// estimate returns how many rows the query planner takes a table to have.
func estimate(ctx context.Context, tx *sql.Tx, table string) (int64, error) {
	var text string
	if err := tx.QueryRowContext(ctx, `EXPLAIN (FORMAT JSON) SELECT FROM `+table).Scan(&text); err != nil {
		return 0, err
	}
	var plans []struct {
		Plan struct {
			Rows float64 `json:"Plan Rows"`
		}
	}
	if err := json.Unmarshal([]byte(text), &plans); err != nil || len(plans) == 0 {
		return 0, fmt.Errorf("read a plan: %q: %w", text, err)
	}
	return int64(plans[0].Plan.Rows), nil
}
