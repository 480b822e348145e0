package outbox

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// floorEvery is how often floors are raised, floorLate how often in any case, and
	// floorRows after how many rows. It costs two statements.
	floorEvery = 100 * time.Millisecond
	floorLate  = 2 * time.Second
	floorRows  = 2000

	// forgetFloors is how often partitions are looked at from the bottom, where nothing should
	// be, unless somebody has set the ids back. forgetSlowly is how often where that would go
	// once more through all that floors have passed: rows that wait, and what was published
	// beside a long transaction. It is also the longest pause after a look that took long.
	forgetFloors = 5 * time.Second
	forgetSlowly = time.Minute
)

// A chore is what is done now and then.
type chore struct {
	last time.Time
	took time.Duration
}

// next is when it is due again: the later the longer it took, within bounds.
func (c *chore) next(least, most time.Duration) time.Time {
	return c.last.Add(min(max(least, 4*c.took), most))
}

func (c *chore) did(begun time.Time) {
	c.last = time.Now()
	c.took = c.last.Sub(begun)
}

// remember decides how long floors are remembered: the longer, the longer the fetch from
// the bottom took.
func (o *ordered) remember(took time.Duration) {
	switch {
	case o.firm != nil || o.waiting():
		o.forgetEvery = forgetSlowly
	case o.forgetEvery == 0:
		o.forgetEvery = min(max(forgetFloors, scanShare*took), forgetSlowly)
	}
}

// raise raises the floors of all partitions now and then: to the first row that there is,
// but not beyond what may still be committed. It takes no lock to know that there are no
// rows.
func (o *ordered) raise(ctx context.Context, tx *sql.Tx, now time.Time) error {
	o.since += len(o.chosen)
	if !o.met || o.since < floorRows && now.Before(o.raised.next(floorEvery, floorLate)) {
		return nil
	}
	if o.horizon.safe == bottom {
		if err := o.seeLast(ctx, tx); err != nil {
			return err
		}
	}
	safe := o.safe() // what is read now was committed after that was known
	if err := o.findFirst(ctx, tx, safe); err != nil {
		return err
	}
	writers, err := o.writers(ctx, tx)
	if err != nil {
		return err
	}
	o.look(writers)
	o.since = 0
	o.raised.did(now)
	return nil
}

// seeLast sees the largest id that there is, so that floors need not wait for all rows to
// be looked at.
func (o *ordered) seeLast(ctx context.Context, tx *sql.Tx) error {
	return eachRow(ctx, tx, `SELECT id FROM `+o.table()+` ORDER BY id DESC LIMIT 1`, func(scan func(...any) error) error {
		var id int64
		err := scan(&id)
		o.see(id)
		return err
	})
}

// free finds out which keys wait no more: the more of them there are the less often.
func (o *ordered) free(ctx context.Context, tx *sql.Tx) (freed bool, err error) {
	if o.unchecked = o.waiting(); !o.unchecked || time.Now().Before(o.nextFree()) {
		return false, nil
	}
	now := time.Now()
	var ids []string
	for p := range o.all {
		for _, id := range o.all[p].waits {
			ids = append(ids, strconv.FormatInt(id, 10))
		}
	}
	still := make(map[int64]bool, len(ids))
	err = eachRow(ctx, tx, fmt.Sprintf(`
		SELECT id FROM %s
		WHERE id = ANY ('{%s}'::bigint[]) AND (parked_at IS NOT NULL OR not_before > now())`, o.table(), strings.Join(ids, ",")), func(scan func(...any) error) error {
		var id int64
		err := scan(&id)
		still[id] = true
		return err
	})
	if err != nil {
		return false, err
	}
	for p := range o.all {
		freed = o.all[p].free(still) || freed
	}
	o.unchecked = false
	o.freed.did(now)
	return freed, nil
}

// nextFree is when to look for keys that wait no more.
func (o *ordered) nextFree() time.Time { return o.freed.next(floorEvery, floorLate) }

// findFirst raises floors and tails to the first row behind the tail whose key does not
// wait. It does not look at more than so many rows that do.
func (o *ordered) findFirst(ctx context.Context, tx *sql.Tx, safe int64) error {
	const most = 200
	var firsts [partitions]first
	var list [partitions]string
	for number := range o.all {
		p, f := &o.all[number], &firsts[number]
		if f.most = 1; len(p.waits) > 0 {
			f.most = most
		}
		list[number] = fmt.Sprintf("(%d, '%d'::bigint, %d)", number, p.tail, f.most)
	}
	err := eachRow(ctx, tx, fmt.Sprintf(`
		SELECT part.number, row.id, row.key
		FROM (VALUES %s) AS part (number, tail, most) CROSS JOIN LATERAL (
			SELECT id, %s AS key
			FROM %s
			WHERE ordering_key IS NOT NULL AND %s = part.number AND id >= part.tail AND %s
			ORDER BY id
			LIMIT part.most
		) AS row
		ORDER BY row.id`, strings.Join(list[:], ", "), keyOf, o.table(), partitionOf, o.to.topics), func(scan func(...any) error) error {
		var number int
		var c choice
		if err := scan(&number, &c.id, &c.key); err != nil {
			return err
		}
		_, waits := o.all[number].waits[c.key]
		firsts[number].add(c.id, waits)
		return nil
	})
	if err != nil {
		return err
	}
	for number := range o.all {
		o.all[number].raise(min(safe, firsts[number].next()))
	}
	return nil
}

// writers returns the transactions that may have rows in the table which nobody sees yet.
// An INSERT locks the table in this mode before it takes an id, until its transaction ends.
func (o *ordered) writers(ctx context.Context, tx *sql.Tx) (writers []writer, err error) {
	err = eachRow(ctx, tx, fmt.Sprintf(`
		SELECT virtualtransaction, coalesce(min(transactionid::text::bigint), 0) FROM pg_locks
		WHERE granted AND pid IS DISTINCT FROM pg_backend_pid() AND (locktype = 'transactionid' OR
			locktype = 'relation' AND mode = 'RowExclusiveLock' AND relation = '%s'::regclass
				AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
		GROUP BY virtualtransaction
		HAVING bool_or(locktype = 'relation')`, strings.ReplaceAll(o.table(), `'`, `''`)), func(scan func(...any) error) error {
		var one writer
		err := scan(&one.virtual, &one.id)
		writers = append(writers, one)
		return err
	})
	return writers, err
}

// waiting reports whether there is a key that waits.
func (o *ordered) waiting() bool {
	return slices.ContainsFunc(o.all[:], func(p partition) bool { return len(p.waits) > 0 })
}

// pause returns in time to find out whether keys wait still, if that was put off.
func (o *ordered) pause(poll time.Duration) time.Duration {
	if o.unchecked {
		return min(poll, time.Until(o.nextFree()))
	}
	return poll
}
