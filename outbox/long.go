package outbox

import (
	"context"
	"database/sql"
	"maps"
	"slices"
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
func (o *ordered) look(writers []string) {
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
	o.soft.look(slices.DeleteFunc(slices.Clone(writers), func(w string) bool { return slices.Contains(o.long, w) }), now)
}

// longEnded reports whether a transaction has ended that floors went on without. Then
// they go back, and what was chosen is not: an earlier row of its key may have been
// committed.
func (o *ordered) longEnded(ctx context.Context, tx *sql.Tx) (ended bool, err error) {
	if o.firm == nil {
		return false, nil
	}
	writers, err := o.writers(ctx, tx)
	if err != nil || !slices.ContainsFunc(o.long, func(w string) bool { return !slices.Contains(writers, w) }) {
		return false, err
	}
	o.all, o.firm = *o.firm, nil
	o.chosen, o.again = o.chosen[:0], true
	return true, nil
}
