package outbox

import (
	"context"
	"database/sql"
	"errors"
	"strconv"

	"github.com/oncemill/oncemill/internal/metadata"
	"github.com/oncemill/oncemill/internal/pgarray"
)

// changeRows is how many rows one transaction of an Admin changes.
const changeRows = 1000

// Changed says what became of the rows that an operator dealt with.
type Changed struct {
	Rows    int64 // that were changed
	Skipped int64 // that matched but were held by somebody just then: try again
	Behind  int64 // that were dropped because they waited behind those; of DropWithBehind only
	GoOn    int64 // rows that waited behind those and now wait no longer; of Drop only
}

// Retry has rows tried again at once, as if they had never failed. They keep their ids,
// so that an ordering key goes on in its order. A parked row gets a fresh DedupID, since
// the broker may remember the old one; a deferred one keeps it, since the broker may have
// it after all.
//
// It takes as many transactions as it needs, of 1,000 rows at most, and wakes relays at
// the end. After an error Changed says what was done before.
func (a *Admin) Retry(ctx context.Context, f Filter) (Changed, error) {
	fresh := `, dedup_id = gen_random_uuid()`
	if f.state() == Deferred {
		fresh = ""
	}
	return a.change(ctx, f, "retry", func(tx *sql.Tx, ids string, c *Changed) error {
		result, err := tx.ExecContext(ctx, `
			UPDATE `+a.table("outbox")+`
			SET parked_at = NULL, not_before = NULL, attempts = 0`+fresh+`
			WHERE id = ANY ('`+ids+`'::bigint[])`)
		if err == nil {
			c.Rows, err = result.RowsAffected()
		}
		return err
	})
}

// Drop deletes rows for good. Each is handed to keep before, with its payload and
// metadata, inside the transaction that deletes it: if keep returns an error, nothing of
// that transaction is deleted. keep may be nil. A row that keep was given may still be
// there afterwards, if the COMMIT fails.
//
// It takes as many transactions as it needs, of 1,000 rows at most, and wakes relays at
// the end. After an error Changed says what was done before.
func (a *Admin) Drop(ctx context.Context, f Filter, keep func(Entry) error) (Changed, error) {
	return a.change(ctx, f, "drop", func(tx *sql.Tx, ids string, c *Changed) error { return a.dropRows(ctx, tx, f, ids, keep, c) })
}

// dropRows deletes rows that are picked, and counts what goes on then.
func (a *Admin) dropRows(ctx context.Context, tx *sql.Tx, f Filter, ids string, keep func(Entry) error, c *Changed) error {
	rows, keys, err := a.deleteRows(ctx, tx, f.state(), ids, keep)
	if err != nil {
		return err
	}
	c.Rows = rows
	c.GoOn, err = a.goOn(ctx, tx, keys)
	return err
}

// deleteRows deletes rows and hands them to keep. It returns how many there were, and the
// least id of each ordering key.
func (a *Admin) deleteRows(ctx context.Context, tx *sql.Tx, state State, ids string, keep func(Entry) error) (n int64, keys map[string]int64, err error) {
	keys = make(map[string]int64)
	rows, err := tx.QueryContext(ctx, `
		DELETE FROM `+a.table("outbox")+`
		WHERE id = ANY ('`+ids+`'::bigint[])
		RETURNING id, dedup_id::text, topic, uuid, ordering_key, `+createdAt+`, attempts,
		          `+readable("coalesce(parked_at, not_before)")+`, coalesce(last_error, ''), payload, metadata::text`)
	if err != nil {
		return 0, nil, err
	}
	defer rows.Close()
	for ; rows.Next(); n++ {
		e := Entry{State: state}
		if err := rows.Scan(&e.ID, &e.DedupID, &e.Topic, &e.UUID, &e.OrderingKey, &e.CreatedAt, &e.Attempts, &e.Since, &e.Error, &e.Payload, &e.MetadataText); err != nil {
			return 0, nil, err
		}
		e.Size = int64(len(e.Payload))
		e.Metadata, _ = metadata.DecodeText(e.MetadataText)
		if first, known := keys[string(e.OrderingKey)]; e.OrderingKey != nil && (!known || e.ID < first) {
			keys[string(e.OrderingKey)] = e.ID
		}
		if keep == nil {
			continue
		}
		if err := keep(e); err != nil {
			return 0, nil, err
		}
	}
	return n, keys, errors.Join(rows.Err(), rows.Close())
}

// change runs fn for the rows that match and that nobody holds, given their ids as an
// array, in transactions of its own. fn says what it has done.
func (a *Admin) change(ctx context.Context, f Filter, what string, fn func(tx *sql.Tx, ids string, c *Changed) error) (sum Changed, err error) {
	if err := f.checkChange(what); err != nil {
		return sum, err
	}
	for after, more := int64(0), true; more && err == nil; {
		var c Changed
		var ids string
		err = a.in(ctx, func(tx *sql.Tx) (err error) {
			if ids, c.Skipped, after, more, err = a.pick(ctx, tx, f, after); err != nil || ids == "{}" {
				return err
			}
			return fn(tx, ids, &c)
		})
		if err == nil {
			sum.add(c)
		}
	}
	return a.ended(ctx, sum, f, what, err)
}

// pick locks the next rows that match, behind an id, but for those that somebody holds.
func (a *Admin) pick(ctx context.Context, tx *sql.Tx, f Filter, after int64) (ids string, skipped, last int64, more bool, err error) {
	var args []any
	where := f.where(&args)
	if after != 0 {
		where += ` AND id > ` + argument(&args, after) + `::bigint`
	}
	table := a.table("outbox")
	rows, err := tx.QueryContext(ctx, `
		WITH matching AS MATERIALIZED (
			SELECT id FROM `+table+` WHERE `+where+` ORDER BY id LIMIT `+strconv.Itoa(changeRows)+`
		), locked AS MATERIALIZED (
			SELECT id FROM `+table+`
			WHERE id = ANY (ARRAY(SELECT id FROM matching)) AND `+f.state().where()+`
			FOR UPDATE SKIP LOCKED
		)
		SELECT matching.id, locked.id IS NOT NULL FROM matching LEFT JOIN locked ON locked.id = matching.id ORDER BY matching.id`, args...)
	if err != nil {
		return "", 0, after, false, err
	}
	defer rows.Close()
	var locked pgarray.Array
	found := 0
	for last = after; rows.Next(); found++ {
		var ours bool
		if err := rows.Scan(&last, &ours); err != nil {
			return "", 0, after, false, err
		}
		if !ours {
			skipped++
			continue
		}
		locked.AddText(strconv.FormatInt(last, 10))
	}
	return locked.String(), skipped, last, found == changeRows, rows.Err()
}
