package outbox

import (
	"context"
	"database/sql"
	"strconv"

	"github.com/oncemill/oncemill/internal/pgarray"
)

// fewKeys is up to how many ordering keys have their rows looked up in the index of their
// partition, where each costs a walk along a part of all rows. The rows of more keys are
// found by going through the table once.
const fewKeys = 4

// joinKeys has the planner join rows to that many ordering keys, in the rest of the
// transaction, and returns the condition that it is for.
func joinKeys(ctx context.Context, tx *sql.Tx, keys int) (on string, err error) {
	set := `SET LOCAL enable_seqscan = on; SET LOCAL enable_nestloop = off`
	on = `b.ordering_key = k.ordering_key AND b.ordering_key IS NOT NULL`
	if keys <= fewKeys {
		set = `SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off`
		on += ` AND (get_byte(sha256(b.ordering_key), 0) % 64) = (get_byte(sha256(k.ordering_key), 0) % 64)`
	}
	_, err = tx.ExecContext(ctx, set)
	return on, err
}

// countBehind sets Entry.Behind of some entries, which are in the order of their ids. For
// each row of a key those are counted that lie between it and the next entry of the key.
func (a *Admin) countBehind(ctx context.Context, tx *sql.Tx, entries []Entry) error {
	var key, id pgarray.Array
	ofKey := make(map[string][]int) // the entries of a key
	for i, e := range entries {
		if e.OrderingKey != nil {
			ofKey[string(e.OrderingKey)] = append(ofKey[string(e.OrderingKey)], i)
			key.AddBytes(e.OrderingKey)
			id.AddText(strconv.FormatInt(e.ID, 10))
		}
	}
	if len(ofKey) == 0 {
		return nil
	}
	on, err := joinKeys(ctx, tx, len(ofKey))
	if err != nil {
		return err
	}
	rows, err := tx.QueryContext(ctx, `
		WITH k AS MATERIALIZED (
			SELECT ordering_key::bytea AS ordering_key, array_agg(id::bigint ORDER BY id::bigint) AS ids
			FROM unnest($1::text::text[], $2::text::text[]) AS listed (ordering_key, id)
			GROUP BY 1
		)
		SELECT k.ordering_key, width_bucket(b.id - 1, k.ids), count(*)
		FROM k JOIN `+a.table("outbox")+` b ON `+on+` AND b.id > k.ids[1]
		GROUP BY 1, 2`, key.String(), id.String())
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var key []byte
		var entry int // of the key, the last one before those rows, counted from 1
		var n int64
		if err := rows.Scan(&key, &entry, &n); err != nil {
			return err
		}
		for _, i := range ofKey[string(key)][:entry] {
			entries[i].Behind += n
		}
	}
	return rows.Err()
}

// goOn returns how many rows of some ordering keys, behind an id of each, wait for no
// other row that is parked or deferred.
func (a *Admin) goOn(ctx context.Context, tx *sql.Tx, keys map[string]int64) (n int64, err error) {
	if len(keys) == 0 {
		return 0, nil
	}
	held, err := a.firstHeld(ctx, tx, keys)
	if err != nil {
		return 0, err
	}
	var key, from, upto pgarray.Array
	for k, first := range keys {
		key.AddBytes([]byte(k))
		from.AddText(strconv.FormatInt(first, 10))
		if next, ok := held[k]; ok {
			upto.Add(sql.NullString{String: strconv.FormatInt(next, 10), Valid: true})
		} else {
			upto.Add(sql.NullString{})
		}
	}
	on, err := joinKeys(ctx, tx, len(keys))
	if err != nil {
		return 0, err
	}
	err = tx.QueryRowContext(ctx, `
		WITH k AS MATERIALIZED (
			SELECT ordering_key::bytea AS ordering_key, first::bigint AS first, held::bigint AS held
			FROM unnest($1::text::text[], $2::text::text[], $3::text::text[]) AS dropped (ordering_key, first, held)
		)
		SELECT count(*) FROM k JOIN `+a.table("outbox")+` b ON `+on+` AND b.id > k.first AND (k.held IS NULL OR b.id < k.held)`,
		key.String(), from.String(), upto.String()).Scan(&n)
	return n, err
}

// firstHeld returns the least id of a parked or deferred row of each key that has one.
func (a *Admin) firstHeld(ctx context.Context, tx *sql.Tx, keys map[string]int64) (held map[string]int64, err error) {
	var key pgarray.Array
	for k := range keys {
		key.AddBytes([]byte(k))
	}
	rows, err := tx.QueryContext(ctx, `
		SELECT k.ordering_key, h.id
		FROM (SELECT ordering_key::bytea AS ordering_key FROM unnest($1::text::text[]) AS dropped (ordering_key)) AS k CROSS JOIN LATERAL (
			SELECT id FROM `+a.table("outbox")+` AS o
			WHERE o.ordering_key = k.ordering_key AND sha256(o.ordering_key) = sha256(k.ordering_key)
				AND o.ordering_key IS NOT NULL AND (o.parked_at IS NOT NULL OR o.not_before IS NOT NULL)
			ORDER BY id
			LIMIT 1
		) AS h`, key.String())
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	held = make(map[string]int64)
	for rows.Next() {
		var k []byte
		var id int64
		if err := rows.Scan(&k, &id); err != nil {
			return nil, err
		}
		held[string(k)] = id
	}
	return held, rows.Err()
}
