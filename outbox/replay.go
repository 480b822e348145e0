package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/oncemill/oncemill/internal/dbcheck"
	"github.com/oncemill/oncemill/internal/metadata"
)

// A Replay says which of the rows that relays have kept are published again.
type Replay struct {
	Since time.Time // published then or later. Required
	Until time.Time // published before; zero: before the call, by the database's clock
	Topic string    // a * in it stands for any characters, also none; "": any
	Key   []byte    // the ordering key; nil: any, which an empty one is not

	// DryRun has them counted, and left where they are.
	DryRun bool

	// Progress is called after each transaction with how many rows were put back so far.
	// It may be nil.
	Progress func(rows int64)
}

// Replay puts rows that relays have kept back into the outbox, so that they are published
// again, in the order in which they were: for what the broker has lost. It returns how
// many. They keep their UUID, metadata, ordering key and CreatedAt. They get new ids, in
// their order, behind those that are waiting in the outbox already, and fresh DedupIDs,
// since the broker may remember the old one though it has lost the message.
//
// Consumers inside oncemill's Once drop what they have handled before, as long as their
// claims reach back that far; others handle it again.
//
// It takes transactions of 1,000 rows, and wakes relays at the end. Of two replays at the
// same time each waits for the other's transaction, and a row is put back by one. What was put back before an error stays so: the
// same call again does the rest, and with Until set to when the first one began only that,
// since rows are kept again when they are published again.
func (a *Admin) Replay(ctx context.Context, r Replay) (rows int64, err error) {
	if err := r.check(); err != nil {
		return 0, err
	}
	if r.DryRun {
		rows, err = a.countKept(ctx, r)
	} else {
		rows, err = a.replay(ctx, r)
	}
	if err != nil {
		err = fmt.Errorf("outbox: replay: %w", dbcheck.NoTable(err, 6, "rows are kept"))
	}
	if rows > 0 && !r.DryRun {
		err = errors.Join(err, a.wake(context.WithoutCancel(ctx)))
	}
	return rows, err
}

func (r Replay) check() error {
	switch {
	case r.Since.IsZero():
		return errors.New("outbox: Replay.Since is not set: say since when rows were published that are to be published again")
	case !r.Until.IsZero() && !r.Until.After(r.Since):
		return fmt.Errorf("outbox: Replay.Until is %v: must be after Since, %v", r.Until, r.Since)
	case !metadata.IsText(r.Topic):
		return fmt.Errorf("outbox: Replay.Topic is %q: must be UTF-8 without NUL", r.Topic)
	}
	return nil
}

func (r Replay) where(args *[]any) string {
	where := `published_at >= ` + argument(args, timeText(r.Since)) + `::text::timestamptz`
	if !r.Until.IsZero() {
		where += ` AND published_at < ` + argument(args, timeText(r.Until)) + `::text::timestamptz`
	}
	if r.Topic != "" {
		where += ` AND ` + topicIs(args, r.Topic)
	}
	if r.Key != nil {
		where += ` AND ordering_key = ` + argument(args, r.Key) + `::bytea`
	}
	return where
}

func (a *Admin) countKept(ctx context.Context, r Replay) (n int64, err error) {
	var args []any
	query := `SELECT count(*) FROM ` + a.table("published") + ` WHERE ` + r.where(&args)
	err = a.in(ctx, func(tx *sql.Tx) error { return tx.QueryRowContext(ctx, query, args...).Scan(&n) })
	return n, err
}

func (a *Admin) replay(ctx context.Context, r Replay) (rows int64, err error) {
	if r.Until.IsZero() { // or it would go on with what was published again meanwhile
		if err := a.DB.QueryRowContext(ctx, `SELECT clock_timestamp()`).Scan(&r.Until); err != nil {
			return 0, fmt.Errorf("database: %w", err)
		}
	}
	for after, more := (keptPosition{}), true; more; {
		n := int64(0)
		err := a.in(ctx, func(tx *sql.Tx) (err error) {
			n, after, err = a.putBack(ctx, tx, r, after)
			return err
		})
		if err != nil {
			return rows, err
		}
		rows += n
		if more = n == changeRows; n > 0 && r.Progress != nil {
			r.Progress(rows)
		}
	}
	return rows, nil
}

// A keptPosition is a place in the table published, behind rows that were put back: they
// are not stepped over again, which vacuum may not have removed yet.
type keptPosition struct {
	at      time.Time
	id      int64
	dedupID string
}

// putBack puts the next rows behind a position back. Only one transaction at a time does
// so, in a statement after the one that took the lock, as in moveDue: the rows of a key
// get their new ids in their order.
func (a *Admin) putBack(ctx context.Context, tx *sql.Tx, r Replay, after keptPosition) (n int64, last keptPosition, err error) {
	lock := `SELECT pg_advisory_xact_lock(hashtextextended('oncemill replay ' || $1, 0))`
	if _, err := tx.ExecContext(ctx, lock, a.table("published")); err != nil {
		return 0, after, err
	}
	var args []any
	where := r.where(&args)
	if !after.at.IsZero() {
		where += ` AND (published_at, id, dedup_id) > (` + argument(&args, timeText(after.at)) + `::text::timestamptz, ` +
			argument(&args, after.id) + `::bigint, ` + argument(&args, after.dedupID) + `::text::uuid)`
	}
	kept := a.table("published")
	var at sql.NullTime
	var id sql.NullInt64
	var dedupID sql.NullString
	err = tx.QueryRowContext(ctx, `
		WITH picked AS MATERIALIZED (
			SELECT ctid AS row, published_at, id, dedup_id FROM `+kept+`
			WHERE `+where+`
			ORDER BY published_at, id, dedup_id
			LIMIT `+strconv.Itoa(changeRows)+`
			FOR UPDATE
		), gone AS (
			DELETE FROM `+kept+` WHERE ctid = ANY (ARRAY(SELECT row FROM picked))
			RETURNING published_at, id, topic, uuid, metadata, ordering_key, payload, created_at
		), back AS (
			INSERT INTO `+a.table("outbox")+` (topic, uuid, metadata, ordering_key, payload, created_at)
			SELECT topic, uuid, metadata, ordering_key, payload, created_at FROM gone ORDER BY published_at, id
			RETURNING id
		), last AS (
			SELECT published_at, id, dedup_id::text FROM picked ORDER BY picked.published_at DESC, picked.id DESC, picked.dedup_id DESC LIMIT 1
		)
		SELECT (SELECT count(*) FROM back), (SELECT `+readable("published_at")+` FROM last), (SELECT id FROM last), (SELECT dedup_id FROM last)`,
		args...).Scan(&n, &at, &id, &dedupID)
	return n, keptPosition{at.Time, id.Int64, dedupID.String}, err
}
