package outbox

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/oncemill/oncemill/schema"
)

// partitions is how many there are. It is a part of the schema: the index outbox_keyed
// is by partition.
const partitions = 64

// partitionOf is the partition of a row, as the index outbox_keyed has it.
const partitionOf = `get_byte(sha256(ordering_key), 0) % 64`

const (
	// floorEvery is how often floors are raised, which costs a statement.
	floorEvery = 100 * time.Millisecond

	// forgetFloors is how often partitions are looked at from the bottom. Nothing should
	// be there, unless somebody has set the ids back.
	forgetFloors = time.Minute
)

// An ordered is where rows with an ordering key come from. Each key belongs to one of 64
// partitions, and who has a partition's lock, which ends with the transaction, is the
// only one who publishes its rows.
//
// The lock is taken in one statement and the rows are read by another. In one, the rows
// would be those of a moment before the lock was had, and so perhaps some that the holder
// before has published and deleted since.
//
// The rows are chosen by a statement of their own, and read by the next one, which locks
// them and leaves out those that somebody else has locked: an operator who changes one, or
// a relay of an older version. What follows such a row of its key waits.
type ordered struct {
	schema string
	to     destination
	all    [partitions]partition
	held   []int    // the partitions of the last fetch
	chosen []choice // its rows, in the order of their ids
	most   int      // rows of the last fetch
	limit  int      // rows in each of its partitions; more where few of them have many

	busy    bool      // only half of the partitions are taken, to leave the rest to the next batch
	met     bool      // there was a row with an ordering key
	forgot  time.Time // when floors were last forgotten
	raised  time.Time // when floors were last raised
	walked  time.Time // when partitions that are slow were last looked at
	walk    time.Duration
	slow    bool // the last fetch was of such partitions too
	horizon horizon
}

// A partition is what is known of one.
type partition struct {
	floor int64 // there is no row below, and there will be none

	// waits: at the floor is a row that is deferred or parked. Those that wait behind it
	// are stepped over by each fetch.
	waits bool
}

func newOrdered(schemaName string, to destination) *ordered {
	if to.topics == "" {
		to.topics = "true"
	}
	o := &ordered{schema: schemaName, to: to}
	o.reset()
	return o
}

// reset forgets what is known of the table: the database may be another one now.
func (o *ordered) reset() {
	o.horizon = horizon{safe: bottom, seen: bottom}
	o.forget(time.Now())
}

// Floors never pass by a row that is there.
func (o *ordered) putBack(int64) {}

func (o *ordered) pause(poll time.Duration) time.Duration { return poll }

func (o *ordered) inOrder() bool { return true }

func (o *ordered) forget(now time.Time) {
	for p := range o.all {
		o.all[p] = partition{floor: bottom}
	}
	o.forgot, o.raised = now, time.Time{}
}

// pipelined has fetches take half of the partitions, so that the next one finds others
// while the rows of this one are on their way.
func (o *ordered) pipelined(yes bool) { o.busy = yes }

// rows locks partitions and returns where the rows are read from that are chosen in them.
func (o *ordered) rows(ctx context.Context, tx *sql.Tx, n int, condition string) (from string, err error) {
	now := time.Now()
	if now.Sub(o.forgot) >= forgetFloors {
		o.forget(now)
	}
	o.chosen = o.chosen[:0]
	if err := o.lock(ctx, tx, now); err != nil || len(o.held) == 0 {
		return "", err
	}
	if err := o.choose(ctx, tx, n, condition); err != nil || len(o.chosen) == 0 {
		return "", err
	}
	ids := make([]byte, 0, 12*len(o.chosen))
	for _, c := range o.chosen {
		ids = append(strconv.AppendInt(ids, c.id, 10), ',')
	}
	return fmt.Sprintf(`
			FROM %s
			WHERE id = ANY ('{%s}'::bigint[]) AND parked_at IS NULL
			ORDER BY id
			FOR UPDATE SKIP LOCKED`, o.table(), ids[:len(ids)-1]), nil
}

// A choice is a row that is to be published.
type choice struct {
	id  int64
	key string // its ordering key's hash
}

// choose finds the first rows of the held partitions that are due and that no other one of
// their key precedes: n at most, and in each partition o.limit.
func (o *ordered) choose(ctx context.Context, tx *sql.Tx, n int, condition string) error {
	o.most = n
	o.limit = min(max(o.limit, n/len(o.held), 1), n)
	rows, err := tx.QueryContext(ctx, fmt.Sprintf(`
		SELECT row.id, row.key
		FROM (VALUES %[1]s) AS part (number, floor) CROSS JOIN LATERAL (
			SELECT id, encode(sha256(ordering_key), 'hex') AS key
			FROM %[2]s AS o
			WHERE ordering_key IS NOT NULL AND %[5]s = part.number AND id >= part.floor AND %[6]s AND %[7]s
				AND parked_at IS NULL AND (not_before IS NULL OR not_before <= now())
				AND (SELECT true FROM %[2]s AS h
					WHERE h.ordering_key IS NOT NULL AND (h.parked_at IS NOT NULL OR h.not_before IS NOT NULL)
						AND sha256(h.ordering_key) = sha256(o.ordering_key) AND h.id < o.id
						AND (h.parked_at IS NOT NULL OR h.not_before > now())
					LIMIT 1) IS NULL
			ORDER BY id
			LIMIT %[3]d
		) AS row
		ORDER BY row.id
		LIMIT %[4]d`, o.floors(), o.table(), o.limit, n, partitionOf, o.to.topics, condition))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var c choice
		if err := rows.Scan(&c.id, &c.key); err != nil {
			return err
		}
		o.chosen = append(o.chosen, c)
	}
	return rows.Err()
}

// stopped returns the keys of rows that were chosen and could not be locked, and the first
// row of each.
func (o *ordered) stopped(f *fetched) map[string]int64 {
	got := make(map[int64]bool, f.read())
	for _, row := range f.rows {
		got[row.ID] = true
	}
	for _, b := range f.broken {
		got[b.row.ID] = true
	}
	stopped := make(map[string]int64)
	for _, c := range slices.Backward(o.chosen) {
		if !got[c.id] {
			stopped[c.key] = c.id
		}
	}
	return stopped
}

// lock takes the partitions that are to be had, in an order that differs from time to
// time, so that none is left out where only some are taken.
func (o *ordered) lock(ctx context.Context, tx *sql.Tx, now time.Time) error {
	o.slow = now.Sub(o.walked) >= scanShare*o.walk
	var wanted []string
	for _, p := range rand.Perm(partitions) {
		if o.slow || !o.all[p].waits {
			wanted = append(wanted, fmt.Sprint(p))
		}
	}
	most := partitions
	if o.busy {
		most = partitions / 2
	}
	// A relay that has never met an ordering key does not need all the locks to see that
	// there is none.
	meet := "true"
	if !o.met {
		meet = `EXISTS (SELECT FROM ` + o.table() + ` WHERE ordering_key IS NOT NULL)`
	}
	rows, err := tx.QueryContext(ctx, fmt.Sprintf(`
		SELECT number FROM unnest('{%s}'::integer[]) AS number
		WHERE %s AND pg_try_advisory_xact_lock(hashtextextended(%s, number))
		LIMIT %d`, strings.Join(wanted, ","), meet, o.lockName(), most))
	if err != nil {
		return err
	}
	defer rows.Close()
	o.held = o.held[:0]
	for rows.Next() {
		var p int
		if err := rows.Scan(&p); err != nil {
			return err
		}
		o.held = append(o.held, p)
	}
	return rows.Err()
}

// lockName is what the locks of the partitions are derived from, as an SQL literal. Each
// Sink has locks of its own, or one that is slow would hold up the others.
func (o *ordered) lockName() string {
	name := "oncemill outbox " + schema.Quote(o.schema)
	if o.to.name != "" {
		name += " " + o.to.name
	}
	return `'` + strings.ReplaceAll(name, `'`, `''`) + `'`
}

func (o *ordered) table() string { return schema.Quote(o.schema) + ".outbox" }

// floors are the held partitions and their floors, as rows of a VALUES list.
func (o *ordered) floors() string {
	list := make([]string, len(o.held))
	for i, p := range o.held {
		list[i] = fmt.Sprintf("(%d, '%d'::bigint)", p, o.all[p].floor)
	}
	return strings.Join(list, ", ")
}

// advance raises the floors of the held partitions now and then. more means that another
// fetch should follow at once.
func (o *ordered) advance(ctx context.Context, tx *sql.Tx, f *fetched, begun, ended time.Time) (more bool, err error) {
	if o.slow {
		o.walked = ended
		o.walk = max(0, ended.Sub(begun)-time.Duration(f.read())*rowTime)
	}
	o.met = o.met || len(o.chosen) > 0
	f.more = f.read() > 0 && (len(o.chosen) >= o.limit || f.read() < f.locked || o.busy)
	f.stopped = o.stopped(f)
	o.adapt()
	if o.met && ended.Sub(o.raised) >= floorEvery && len(o.held) > 0 {
		o.raised = ended
		err = o.raise(ctx, tx)
	}
	if f.read() == 0 && o.busy {
		o.busy = false // the other half
		return true, err
	}
	return f.more, err
}

// adapt has the next fetch take more of each partition where few of them have many rows.
func (o *ordered) adapt() {
	n := len(o.chosen)
	if n > 0 {
		o.horizon.see(o.chosen[n-1].id)
	}
	switch {
	case n >= o.most:
		o.limit /= 2
	case n >= o.limit && n < o.most/2:
		o.limit *= 2
	}
}

// raise raises the floors of the held partitions to the first row that there is, but not
// beyond what may still be committed.
func (o *ordered) raise(ctx context.Context, tx *sql.Tx) error {
	safe := o.horizon.safe // what is read now was committed after that was known
	if err := o.findFirst(ctx, tx, safe); err != nil {
		return err
	}
	writers, err := o.writers(ctx, tx)
	if err != nil {
		return err
	}
	o.horizon.look(writers)
	return nil
}

func (o *ordered) findFirst(ctx context.Context, tx *sql.Tx, safe int64) error {
	rows, err := tx.QueryContext(ctx, fmt.Sprintf(`
		SELECT part.number, row.id, coalesce(row.waits, false)
		FROM (VALUES %s) AS part (number, floor) LEFT JOIN LATERAL (
			SELECT id, parked_at IS NOT NULL OR not_before > now() AS waits
			FROM %s
			WHERE ordering_key IS NOT NULL AND %s = part.number AND id >= part.floor AND %s
			ORDER BY id
			LIMIT 1
		) AS row ON true`, o.floors(), o.table(), partitionOf, o.to.topics))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var number int
		var first sql.NullInt64
		var waits bool
		if err := rows.Scan(&number, &first, &waits); err != nil {
			return err
		}
		floor := safe
		if first.Valid {
			floor = min(safe, first.Int64)
		}
		p := &o.all[number]
		p.floor, p.waits = max(p.floor, floor), waits
	}
	return rows.Err()
}

// writers returns the transactions that may have rows in the table which nobody sees yet.
// An INSERT locks the table before it takes an id, until its transaction ends.
func (o *ordered) writers(ctx context.Context, tx *sql.Tx) (writers []string, err error) {
	rows, err := tx.QueryContext(ctx, fmt.Sprintf(`
		SELECT DISTINCT virtualtransaction FROM pg_locks
		WHERE locktype = 'relation' AND relation = '%s'::regclass AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
			AND mode NOT IN ('AccessShareLock', 'RowShareLock') AND granted AND pid IS DISTINCT FROM pg_backend_pid()`,
		strings.ReplaceAll(o.table(), `'`, `''`)))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var one string
		if err := rows.Scan(&one); err != nil {
			return nil, err
		}
		writers = append(writers, one)
	}
	return writers, rows.Err()
}

// A horizon is the least id that an open transaction may still commit. Ids are given in
// their order but committed in another, and a floor that passes by one would have its row
// overtaken. Snapshots do not tell: a transaction that only reads, or works elsewhere,
// would hold the horizon back for as long as it is open.
type horizon struct {
	safe    int64 // all rows below are committed, or never will be
	seen    int64 // the largest id that was seen
	next    int64 // what becomes safe
	waiting []string
}

func (h *horizon) see(id int64) { h.seen = max(h.seen, id) }

// look draws conclusions from which transactions write now. Every id up to the largest
// that was seen was taken by then, under a lock: if its transaction is not among those
// that write now, it has ended.
func (h *horizon) look(writers []string) {
	if h.seen == bottom || slices.ContainsFunc(h.waiting, func(w string) bool { return slices.Contains(writers, w) }) {
		return
	}
	if h.waiting != nil {
		h.safe = max(h.safe, h.next)
	}
	h.next, h.waiting = h.seen+1, writers
	if len(writers) == 0 {
		h.safe, h.waiting = max(h.safe, h.next), nil
	}
}
