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

// partitionOf is the partition of a row, as the index outbox_keyed has it, and keyOf what
// its ordering key is known by.
const (
	partitionOf = `get_byte(sha256(ordering_key), 0) % 64`
	keyOf       = `encode(sha256(ordering_key), 'hex')`
)

const (
	// mostLooked is how many rows of a partition are looked at to find those to publish.
	mostLooked = 1000

	// mostLeftOut is how many keys a statement leaves out at most.
	mostLeftOut = 1000
)

// An ordered is where rows with an ordering key come from. Each key belongs to one of 64
// partitions, and who has a partition's lock, which ends with the transaction, is the
// only one who publishes its rows.
//
// The lock is taken in one statement and the rows are chosen by another. In one, the rows
// would be those of a moment before the lock was had, and so perhaps some that the holder
// before has published and deleted since.
//
// A third statement locks the rows that are chosen and reads them. It leaves out those that
// somebody else has locked: an operator who changes one, or a relay of an older version.
// What follows such a row of its key waits.
type ordered struct {
	schema string
	to     destination
	all    [partitions]partition

	// Of the last fetch:
	held    []int    // its partitions
	chosen  []choice // its rows, in the order of their ids
	most    int      // how many were wanted
	limit   int      // how many are looked at in each partition; more where few have many
	busy    bool     // only half of the partitions are taken, to leave the rest to the next batch
	again   bool     // there is more in one of them
	shunted bool     // a deep key was left out
	met     bool     // there was a row with an ordering key, ever

	// Of the floors:
	highest     *highest
	horizon     horizon
	since       int   // rows that were chosen since they were raised
	raised      chore // when they were
	freed       chore // when it was seen which keys wait no more
	unchecked   bool  // that was put off
	forgot      time.Time
	forgetEvery time.Duration // how long they are remembered; 0: this is the first look after

	// While a transaction that has written stays open for long, floors go on without it,
	// as long as it is open still after each fetch: its rows were in none, then. firm is
	// where they were before, and are again when it has ended.
	firm *[partitions]partition
	long []writer // such transactions
	soft horizon  // without them
}

// A choice is a row that is to be published.
type choice struct {
	id  int64
	key string
}

func newOrdered(schemaName string, to destination, top *highest) *ordered {
	if to.topics == "" {
		to.topics = "true"
	}
	o := &ordered{schema: schemaName, to: to, highest: top}
	o.reset()
	return o
}

// reset forgets what is known of the table: the database may be another one now.
func (o *ordered) reset() { o.forget(time.Now()) }

func (o *ordered) forget(now time.Time) {
	o.horizon = horizon{safe: bottom, seen: bottom}
	o.firm = nil
	for p := range o.all {
		o.all[p] = partition{floor: bottom, tail: bottom, waits: make(map[string]int64)}
	}
	o.forgot, o.raised, o.freed, o.forgetEvery = now, chore{}, chore{}, 0
}

// Floors never pass by a row that is there.
func (o *ordered) putBack(int64) {}

func (o *ordered) inOrder() bool { return true }

// pipelined has fetches take half of the partitions, so that the next one finds others
// while the rows of this one are on their way.
func (o *ordered) pipelined(yes bool) { o.busy = yes }

// rows locks partitions and returns where the rows are read from that are chosen in them.
func (o *ordered) rows(ctx context.Context, tx *sql.Tx, n int, aside *aside) (from string, err error) {
	now := time.Now()
	if now.Sub(o.forgot) >= o.forgetEvery {
		o.forget(now)
	}
	o.chosen, o.again, o.shunted = o.chosen[:0], false, false
	// Before, to look where it has written, and after, to know that it was open meanwhile.
	if _, err := o.longEnded(ctx, tx); err != nil {
		return "", err
	}
	if err := o.lock(ctx, tx); err != nil || len(o.held) == 0 {
		return "", err
	}
	if err := o.choose(ctx, tx, n, aside); err != nil {
		return "", err
	}
	if ended, err := o.longEnded(ctx, tx); err != nil || ended || len(o.chosen) == 0 {
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

// lock takes the partitions that have rows and are to be had, in an order that differs from
// time to time, so that none is left out where only some are taken. Should this process
// freeze, it has no others for as long as Postgres lets it.
func (o *ordered) lock(ctx context.Context, tx *sql.Tx) error {
	most := partitions
	if o.busy {
		most = partitions / 2
	}
	list := make([]string, partitions)
	for i, number := range rand.Perm(partitions) {
		p := &o.all[number]
		list[i] = fmt.Sprintf("(%d, '%d'::bigint)", number, p.tail)
	}
	o.held = o.held[:0]
	return eachRow(ctx, tx, fmt.Sprintf(`
		SELECT number FROM (VALUES %s) AS part (number, tail)
		WHERE CASE WHEN EXISTS (
			SELECT FROM %s
			WHERE ordering_key IS NOT NULL AND %s = part.number AND id >= part.tail AND %s
		) THEN pg_try_advisory_xact_lock(hashtextextended(%s, number)) END
		LIMIT %d`, strings.Join(list, ", "), o.table(), partitionOf, o.to.topics, o.lockName(), most), func(scan func(...any) error) error {
		var p int
		err := scan(&p)
		o.held = append(o.held, p)
		return err
	})
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

// choose finds the first rows that are due and that no other one of their key precedes.
func (o *ordered) choose(ctx context.Context, tx *sql.Tx, n int, aside *aside) error {
	o.most = n
	o.limit = min(max(o.limit, n/len(o.held), 1), mostLooked)
	w := window{ordered: o, aside: aside, rows: make(map[int]*look)}
	err := eachRow(ctx, tx, fmt.Sprintf(`
		SELECT part.number, row.id, row.key, row.held
		FROM (VALUES %s) AS part (number, tail, but) CROSS JOIN LATERAL (
			SELECT id, %s AS key, parked_at IS NOT NULL OR not_before IS NOT NULL AND not_before > now() AS held
			FROM %s
			WHERE ordering_key IS NOT NULL AND %s = part.number AND id >= part.tail AND %s
				AND (part.but = '{}' OR %s <> ALL (part.but))
			ORDER BY id
			LIMIT %d
		) AS row
		ORDER BY row.id`, o.tails(aside), keyOf, o.table(), partitionOf, o.to.topics, keyOf, o.limit), w.scan)
	if err != nil {
		return err
	}
	w.conclude()
	o.chosen = o.chosen[:min(n, len(o.chosen))]
	return nil
}

// tails are the held partitions, where they are looked at from, and the keys that are left
// out there, as rows of a VALUES list.
func (o *ordered) tails(aside *aside) string {
	list := make([]string, len(o.held))
	for i, number := range o.held {
		p := &o.all[number]
		list[i] = fmt.Sprintf("(%d, '%d'::bigint, '{%s}'::text[])", number, p.tail, strings.Join(p.but(aside), ","))
		o.shunted = o.shunted || p.shunt
	}
	return strings.Join(list, ", ")
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

// advance raises the floors of the held partitions now and then. more means that another
// fetch should follow at once.
func (o *ordered) advance(ctx context.Context, tx *sql.Tx, f *fetched, begun, ended time.Time) (more bool, err error) {
	o.remember(ended.Sub(begun))
	f.more = f.read() > 0 && (len(o.chosen) >= o.limit || f.read() < f.locked || o.busy)
	f.stopped = o.stopped(f)
	o.adapt()
	more = f.more || o.again || o.shunted
	if err := o.raise(ctx, tx, ended); err != nil {
		return more, err
	}
	freed, err := o.free(ctx, tx)
	more = more || freed
	if f.read() == 0 && o.busy {
		o.busy = false // the other half
		more = true
	}
	return more, err
}

// adapt has the next fetch look at more rows of each partition where few of them have many.
func (o *ordered) adapt() {
	switch n := len(o.chosen); {
	case o.again: // there were only rows that wait
		o.limit *= 2
	case n >= o.most:
		o.limit /= 2
	case n >= o.limit && n < o.most/2:
		o.limit *= 2
	}
}

// eachRow calls fn for each row of a query, with what scans it.
func eachRow(ctx context.Context, tx *sql.Tx, query string, fn func(scan func(...any) error) error) error {
	rows, err := tx.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := fn(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}
