package main

import (
	"context"
	"database/sql"
	"fmt"
	"time"
)

// A tally counts the rows of a ledger, which grows all the time, without reading it from the
// beginning. Rows with an id up to floor are counted for good: whoever has got such an id
// has committed or not long ago.
type tally struct {
	table string
	floor int64
	below int64 // rows up to floor

	next  int64     // the next floor,
	after time.Time // and from when on
}

// settledAfter is when a transaction has long ended.
const settledAfter = 30 * time.Second

func (t *tally) count(ctx context.Context, db *sql.DB) (rows int64, err error) {
	if !t.after.IsZero() && time.Now().After(t.after) {
		var n int64
		query := fmt.Sprintf(`SELECT count(*) FROM %s WHERE id > $1 AND id <= $2`, t.table)
		if err := db.QueryRowContext(ctx, query, t.floor, t.next).Scan(&n); err != nil {
			return 0, err
		}
		t.below, t.floor, t.after = t.below+n, t.next, time.Time{}
	}
	var last int64
	query := fmt.Sprintf(`SELECT count(*), COALESCE(max(id), $1) FROM %s WHERE id > $1`, t.table)
	if err := db.QueryRowContext(ctx, query, t.floor).Scan(&rows, &last); err != nil {
		return 0, err
	}
	if t.after.IsZero() {
		t.next, t.after = last, time.Now().Add(settledAfter)
	}
	return t.below + rows, nil
}

// A sum is what the ledgers come to in the end.
type sum struct {
	messages, effects int64
	lost, twice       int64
	inDoubt           int64 // claims
	dead              int64 // letters
}

// auditSQL counts the rows of a ledger, and how many of the messages they are of.
const auditSQL = `SELECT count(*), count(DISTINCT number) FILTER (WHERE number BETWEEN 0 AND $1 - 1) FROM `

// audit compares the ledgers with what was sent, message by message: each has one effect
// and one arrival, and each charge is one in the provider's ledger.
func (r *run) audit(ctx context.Context) error {
	r.sum.messages = r.setting.First
	for _, table := range []string{"effects", "arrivals"} {
		var rows, numbers int64
		if err := r.db.QueryRowContext(ctx, auditSQL+table, r.setting.First).Scan(&rows, &numbers); err != nil {
			return err
		}
		if table == "effects" {
			r.sum.effects = rows
		}
		r.sum.lost += r.setting.First - numbers
		r.sum.twice += rows - numbers
	}
	const charged = `SELECT count(DISTINCT number) FROM effects WHERE number % $1 = 0`
	var settled int64
	if err := r.db.QueryRowContext(ctx, charged, chargesEvery).Scan(&settled); err != nil {
		return err
	}
	once, again, err := newCaller(r.setting.Provider).sum(ctx)
	if err != nil {
		return err
	}
	r.sum.lost += max(0, settled-once)
	r.sum.twice += again
	const doubts = `SELECT count(*) FROM oncemill.claims WHERE settled_at IS NULL`
	if err := r.db.QueryRowContext(ctx, doubts).Scan(&r.sum.inDoubt); err != nil {
		return err
	}
	r.sum.dead, err = stored(ctx, r.broker, deadLetters)
	return err
}
