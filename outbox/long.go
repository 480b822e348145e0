package outbox

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// longAfter is how long a transaction that has written to the table may stay open before
// floors go on without it.
const longAfter = time.Second

// see notes an id that was seen.
func (o *ordered) see(id int64) {
	o.horizon.see(id)
	o.soft.see(id)
	o.highest.see(id)
}

// safe is the least id that may still be committed.
func (o *ordered) safe() int64 {
	if o.firm != nil {
		return o.soft.safe
	}
	return o.horizon.safe
}

// look draws conclusions from which transactions write now.
func (o *ordered) look(writers []writer) {
	now := time.Now()
	o.horizon.look(writers, now)
	late := o.horizon.late(writers, now)
	if o.firm == nil {
		if len(late) == 0 {
			return
		}
		firm := o.all
		for p := range firm {
			firm[p].waits = maps.Clone(firm[p].waits)
		}
		o.firm, o.long, o.soft = &firm, nil, o.horizon
		o.soft.waiting = nil
	} else {
		late = o.soft.late(writers, now)
	}
	o.long = append(o.long, late...)
	o.soft.look(slices.DeleteFunc(slices.Clone(writers), func(w writer) bool { return w.in(o.long) }), now)
}

// longEnded reports whether a transaction has ended that floors went on without. Then
// they go back, and what was chosen is not: an earlier row of its key may have been
// committed.
func (o *ordered) longEnded(ctx context.Context, tx *sql.Tx) (ended bool, err error) {
	if o.firm == nil {
		return false, nil
	}
	if ended, err = anyEnded(ctx, tx, o.long); err != nil || !ended {
		return false, err
	}
	o.all, o.firm = *o.firm, nil
	o.chosen, o.again = o.chosen[:0], true
	return true, nil
}

// anyEnded reports whether one of the transactions has ended in this statement's snapshot.
// Its locks would not do: they are given back after what it has written is seen.
func anyEnded(ctx context.Context, tx *sql.Tx, writers []writer) (ended bool, err error) {
	ids := make([]string, len(writers))
	for i, w := range writers {
		ids[i] = strconv.FormatInt(w.id, 10)
	}
	// The ids have 32 bits, those of snapshots 64.
	err = tx.QueryRowContext(ctx, fmt.Sprintf(`
		SELECT bool_or(pg_visible_in_snapshot((most - (most - id) %% 4294967296)::text::xid8, snapshot))
		FROM (SELECT s AS snapshot, pg_snapshot_xmax(s)::text::bigint AS most FROM pg_current_snapshot() AS s) AS now,
			unnest('{%s}'::bigint[]) AS id`, strings.Join(ids, ","))).Scan(&ended)
	return ended, err
}
