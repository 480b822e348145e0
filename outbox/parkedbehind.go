package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"

	"github.com/oncemill/oncemill/internal/pgarray"
)

// DropWithBehind is Drop, and deletes with each row those that wait behind it: of its
// ordering key, that have not failed themselves, and whose topic Filter.Topic takes. It is
// for keys whose messages are all as bad as the first one: else the next of each would be
// tried, and fail, for each call of Drop.
//
// Those that wait are deleted first, so that no relay tries them meanwhile.
func (a *Admin) DropWithBehind(ctx context.Context, f Filter, keep func(Entry) error) (sum Changed, err error) {
	if err := f.checkChange("drop"); err != nil {
		return sum, err
	}
	for after, more := int64(0), true; more && err == nil; {
		var c Changed
		next, rest := after, true
		err = a.in(ctx, func(tx *sql.Tx) error {
			ids, skipped, last, full, err := a.pick(ctx, tx, f, after)
			if err != nil {
				return err
			}
			behind, n, err := a.pickBehind(ctx, tx, f, ids)
			if err != nil {
				return err
			}
			if c.Behind, _, err = a.deleteRows(ctx, tx, Waiting, behind, keep); err != nil || n == changeRows {
				return err // there may be more, and the rows that they wait for keep them from being sent
			}
			next, rest, c.Skipped = last, full, skipped
			return a.dropRows(ctx, tx, f, ids, keep, &c)
		})
		if err == nil {
			after, more = next, rest
			sum.add(c)
		}
	}
	return a.ended(ctx, sum, f, "drop", err)
}

// pickBehind locks rows that wait behind others, up to changeRows, but for those that
// somebody holds.
func (a *Admin) pickBehind(ctx context.Context, tx *sql.Tx, f Filter, ids string) (behind string, n int, err error) {
	keys, err := a.firstOfKeys(ctx, tx, ids)
	if err != nil || len(keys) == 0 {
		return "{}", 0, err
	}
	var key, first pgarray.Array
	for k, id := range keys {
		key.AddBytes([]byte(k))
		first.AddText(strconv.FormatInt(id, 10))
	}
	on, err := joinKeys(ctx, tx, len(keys))
	if err != nil {
		return "", 0, err
	}
	args := []any{key.String(), first.String()}
	rows, err := tx.QueryContext(ctx, `
		WITH k AS MATERIALIZED (
			SELECT ordering_key::bytea AS ordering_key, first::bigint AS first
			FROM unnest($1::text::text[], $2::text::text[]) AS chosen (ordering_key, first)
		)
		SELECT b.id FROM k JOIN `+a.table("outbox")+` b ON `+on+` AND b.id > k.first AND `+waits(f, &args)+`
		ORDER BY b.id
		LIMIT `+strconv.Itoa(changeRows)+`
		FOR UPDATE OF b SKIP LOCKED`, args...)
	if err != nil {
		return "", 0, err
	}
	defer rows.Close()
	var all pgarray.Array
	for ; rows.Next(); n++ {
		var id int64
		if err := rows.Scan(&id); err != nil {
			return "", 0, err
		}
		all.AddText(strconv.FormatInt(id, 10))
	}
	return all.String(), n, rows.Err()
}

// waits is the condition that a row b has not failed, and is to a topic of the Filter.
func waits(f Filter, args *[]any) string {
	where := `b.parked_at IS NULL AND b.not_before IS NULL`
	if f.Topic != "" {
		where += ` AND b.` + topicIs(args, f.Topic)
	}
	return where
}

// firstOfKeys returns the least id of each ordering key among some rows.
func (a *Admin) firstOfKeys(ctx context.Context, tx *sql.Tx, ids string) (first map[string]int64, err error) {
	rows, err := tx.QueryContext(ctx, `
		SELECT ordering_key, min(id) FROM `+a.table("outbox")+`
		WHERE id = ANY ('`+ids+`'::bigint[]) AND ordering_key IS NOT NULL
		GROUP BY 1`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	first = make(map[string]int64)
	for rows.Next() {
		var key []byte
		var id int64
		if err := rows.Scan(&key, &id); err != nil {
			return nil, err
		}
		first[string(key)] = id
	}
	return first, rows.Err()
}

// CountBehind returns how many rows DropWithBehind would delete besides those that match.
func (a *Admin) CountBehind(ctx context.Context, f Filter) (n int64, err error) {
	if err := f.checkChange("drop"); err != nil {
		return 0, err
	}
	err = a.in(ctx, func(tx *sql.Tx) error {
		var args []any
		where := f.where(&args)
		on, err := joinKeys(ctx, tx, fewKeys+1)
		if err != nil {
			return err
		}
		return tx.QueryRowContext(ctx, `
			WITH k AS MATERIALIZED (
				SELECT ordering_key, min(id) AS first FROM `+a.table("outbox")+` WHERE `+where+` AND ordering_key IS NOT NULL GROUP BY 1
			)
			SELECT count(*) FROM k JOIN `+a.table("outbox")+` b ON `+on+` AND b.id > k.first AND `+waits(f, &args), args...).Scan(&n)
	})
	if err != nil {
		return 0, fmt.Errorf("outbox: count what waits behind %s rows: %w", f.state(), err)
	}
	return n, nil
}

// checkChange says what is wrong with a Filter of rows that are to be changed.
func (f Filter) checkChange(what string) error {
	if err := f.check(); err != nil {
		return err
	}
	if f.state() == Scheduled {
		return fmt.Errorf("outbox: %s: scheduled rows cannot be given: use Cancel", what)
	}
	return nil
}

func (c *Changed) add(more Changed) {
	c.Rows, c.Behind, c.Skipped, c.GoOn = c.Rows+more.Rows, c.Behind+more.Behind, c.Skipped+more.Skipped, c.GoOn+more.GoOn
}

// ended wakes relays after a change, and says what was to be done if it failed.
func (a *Admin) ended(ctx context.Context, sum Changed, f Filter, what string, err error) (Changed, error) {
	if err != nil {
		err = fmt.Errorf("outbox: %s %s rows: %w", what, f.state(), err)
	}
	if sum.Rows+sum.Behind > 0 {
		err = errors.Join(err, a.wake(context.WithoutCancel(ctx)))
	}
	return sum, err
}
