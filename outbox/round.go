package outbox

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"

	"github.com/oncemill/oncemill/internal/metadata"
)

// round publishes one batch. more means that there may be further rows that are
// due now. An error means that the database or the broker is away; rows whose
// own fault it is are dealt with in the table.
func (l *loop) round(ctx context.Context) (more bool, err error) {
	connect, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	// After a restart of the database all idle connections of the pool are dead.
	for tries := l.DB.Stats().Idle; ; tries-- {
		conn, err := l.DB.Conn(connect)
		if err != nil {
			return false, fmt.Errorf("database: connect: %w", err)
		}
		more, err := l.roundOn(ctx, conn)
		if err != nil && !errors.Is(err, ErrUnavailable) {
			l.floor = bottom
			// The database is to blame. After a failover this connection may lead
			// to a server that is a replica now, and would fail for ever without
			// breaking.
			_ = conn.Raw(func(any) error { return driver.ErrBadConn })
		}
		conn.Close()
		if tries <= 0 || !errors.Is(err, errDead) {
			return more, err
		}
	}
}

// errDead means that a connection was dead before anything was done with it.
var errDead = errors.New("connection from the pool is dead")

func (l *loop) roundOn(ctx context.Context, conn *sql.Conn) (more bool, err error) {
	begun := time.Now()
	if begun.After(l.due) {
		l.due = time.Time{} // this round sees those rows
	}
	txCtx, cancel := context.WithTimeout(l.settling, l.idleTimeout()+connectTimeout)
	defer cancel()
	tx, err := l.begin(txCtx, conn)
	if err != nil {
		if errors.Is(err, driver.ErrBadConn) {
			err = fmt.Errorf("%w: %w", errDead, err)
		}
		return false, fmt.Errorf("database: begin: %w", err)
	}
	defer tx.Rollback()

	fetched, err := l.fetch(txCtx, tx)
	if err != nil {
		return false, fmt.Errorf("database: fetch rows: %w", err)
	}
	if ctx.Err() != nil {
		return false, nil
	}
	more = l.advance(fetched)
	if fetched.empty() {
		return more, nil
	}
	verdicts := l.publish(fetched)
	if err := verdicts.settle(txCtx, tx, l.table()); err != nil {
		return false, fmt.Errorf("database: settle published rows: %w", err)
	}
	if err := tx.Commit(); err != nil {
		return false, fmt.Errorf("database: commit published rows: %w", err)
	}
	l.tell(fetched, verdicts, time.Since(begun))
	if verdicts.untouched == 0 {
		return more, nil
	}
	// A broker that took some of the batch is slow, or is just going away: then
	// the next round will tell.
	l.floor = bottom
	if len(verdicts.published) == 0 && fetched.more {
		l.floor = fetched.last + 1 // other rows may go elsewhere
	}
	if len(verdicts.published) > 0 && l.publishing.Err() == nil {
		return true, nil
	}
	return false, verdicts.unavailable
}

// advance moves the floor behind the rows of a full batch. Below it may be rows
// that were committed late, deferred or locked by another relay: a fetch from
// the very beginning, once in rescanEvery and when nothing is left above the
// floor, finds those. more means that the next round should follow at once.
func (l *loop) advance(f *fetched) (more bool) {
	now := time.Now()
	if l.floor == bottom {
		l.scanned = now
	}
	more = f.more || l.floor > bottom
	l.floor = bottom
	if f.more && now.Sub(l.scanned) < rescanEvery {
		l.floor = f.last + 1
	}
	return more
}

// begin opens a transaction that Postgres ends by itself should this process
// freeze in it. The planner is kept to the primary key: for a table that has
// just been filled and has no statistics yet, it would otherwise choose to sort
// all rows for every batch.
func (l *loop) begin(ctx context.Context, conn *sql.Conn) (*sql.Tx, error) {
	tx, err := conn.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return nil, err
	}
	set := fmt.Sprintf(`
		SET LOCAL idle_in_transaction_session_timeout = %d;
		SET LOCAL enable_seqscan = off;
		SET LOCAL enable_bitmapscan = off`, l.idleTimeout().Milliseconds())
	if _, err := tx.ExecContext(ctx, set); err != nil {
		tx.Rollback()
		return nil, err
	}
	return tx, nil
}

// fetched is what a round has taken from the table.
type fetched struct {
	rows   []Row     // in the order of their ids
	broken []failure // rows that cannot be read
	oldest time.Time
	last   int64 // the largest id
	more   bool  // there may be further rows that are due
}

func (f *fetched) empty() bool { return len(f.rows) == 0 && len(f.broken) == 0 }

// fetch locks the first rows that are due and that no other relay holds, and
// reads as many of them as fit into memory, at least one. The numbers are
// written into the statement because an argument costs a round trip. A time that
// drivers cannot read, such as infinity, must not stop the relay.
func (l *loop) fetch(ctx context.Context, tx *sql.Tx) (*fetched, error) {
	query := fmt.Sprintf(`
		WITH due AS MATERIALIZED (
			SELECT id, dedup_id, topic, uuid, metadata, ordering_key, payload, created_at, attempts
			FROM %s
			WHERE id >= '%d'::bigint AND parked_at IS NULL AND (not_before IS NULL OR not_before <= now())
			ORDER BY id
			LIMIT %d
			FOR UPDATE SKIP LOCKED
		), sized AS (
			SELECT due.*, count(*) OVER () AS locked,
			       coalesce(octet_length(payload), 0) + coalesce(octet_length(ordering_key), 0) + pg_column_size(metadata) AS size
			FROM due
		), summed AS (
			SELECT sized.*, sum(size) OVER (ORDER BY id) - size AS before
			FROM sized
		)
		SELECT id, dedup_id::text, topic, uuid, metadata::text, ordering_key, payload,
		       CASE WHEN created_at BETWEEN '0001-01-01Z' AND '9999-12-31Z' THEN created_at ELSE now() END,
		       attempts, locked
		FROM summed
		WHERE before < %d
		ORDER BY id`, l.table(), l.floor, l.batch(), batchBytes)
	rows, err := tx.QueryContext(ctx, query)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var f fetched
	for rows.Next() {
		if err := f.scan(rows, l.batch()); err != nil {
			return nil, err
		}
	}
	return &f, rows.Err()
}

// scan adds one row. batch is how many rows the statement may lock.
func (f *fetched) scan(rows *sql.Rows, batch int) error {
	var row Row
	var encoded []byte
	var locked int
	err := rows.Scan(&row.ID, &row.DedupID, &row.Topic, &row.UUID, &encoded, &row.OrderingKey, &row.Payload,
		&row.CreatedAt, &row.Attempts, &locked)
	if err != nil {
		return err
	}
	if f.oldest.IsZero() || row.CreatedAt.Before(f.oldest) {
		f.oldest = row.CreatedAt
	}
	f.last = row.ID
	row.Metadata, err = metadata.Decode(encoded)
	if err != nil {
		f.broken = append(f.broken, failure{row: row, err: err, park: true})
	} else {
		row.takeOrderingKey()
		row.Metadata[OriginMetadata] = row.CreatedAt.UTC().Format(time.RFC3339Nano)
		f.rows = append(f.rows, row)
	}
	read := len(f.rows) + len(f.broken)
	f.more = locked == batch || read < locked
	return nil
}

// takeOrderingKey moves an ordering key from the metadata to its place. Only an
// INSERT from SQL can have left it there.
func (r *Row) takeOrderingKey() {
	key, ok := r.Metadata[OrderingKeyMetadata]
	if ok && r.OrderingKey == nil {
		r.OrderingKey = []byte(key)
	}
	delete(r.Metadata, OrderingKeyMetadata)
}

// publish hands the rows to the Sink and judges its answers.
func (l *loop) publish(f *fetched) *verdicts {
	v := &verdicts{failed: f.broken}
	if len(f.rows) == 0 {
		return v
	}
	ctx, cancel := context.WithTimeout(l.publishing, l.publishTimeout())
	defer cancel()
	answers := l.Sink.PublishBatch(ctx, f.rows)
	if len(answers) != len(f.rows) {
		v.untouched = len(f.rows)
		v.unavailable = fmt.Errorf("%w: Sink %T returned %d errors for %d rows, want one for each", ErrUnavailable, l.Sink, len(answers), len(f.rows))
		return v
	}
	for i, err := range answers {
		if err == nil {
			v.published = append(v.published, f.rows[i].ID)
		}
	}
	for i, err := range answers {
		if err != nil {
			l.judge(v, f.rows[i], err)
		}
	}
	return v
}

// judge decides what becomes of a row that was not published. The deadline may
// pass because one row takes for ever or because the broker is away; if nothing
// at all was published it is taken to be the broker. A row that was cut off by
// the end of Run is not to blame either.
func (l *loop) judge(v *verdicts, row Row, err error) {
	late := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
	blameless := late && (len(v.published) == 0 || l.publishing.Err() != nil)
	refused := errors.Is(err, ErrRefused)
	switch {
	case !refused && (errors.Is(err, ErrUnavailable) || blameless):
		v.untouched++
		if v.unavailable == nil {
			v.unavailable = asUnavailable(err)
		}
	case refused, l.MaxAttempts > 0 && row.Attempts+1 >= l.MaxAttempts:
		v.failed = append(v.failed, failure{row: row, err: err, park: true})
	default:
		pause := backoff(l.minBackoff(), l.maxBackoff(), row.Attempts)
		v.failed = append(v.failed, failure{row: row, err: err, pause: pause})
	}
}

func asUnavailable(err error) error {
	if errors.Is(err, ErrUnavailable) {
		return fmt.Errorf("broker: %w", err)
	}
	return fmt.Errorf("broker: %w: %w", ErrUnavailable, err)
}

// tell logs and observes a batch that is committed.
func (l *loop) tell(f *fetched, v *verdicts, took time.Duration) {
	logger := orDefault(l.Logger)
	result := BatchResult{Published: len(v.published), Unavailable: v.untouched, Oldest: f.oldest, Took: took}
	var first *failure // of those deferred
	for i, failed := range v.failed {
		if failed.park {
			result.Parked++
			logger.Error("outbox relay: parked a message, it stays in the outbox until somebody deals with it",
				"id", failed.row.ID, "topic", failed.row.Topic, "uuid", failed.row.UUID, "error", failed.err,
				"remedy", "README, Parked messages")
			continue
		}
		result.Deferred++
		if first == nil {
			first = &v.failed[i]
		}
		if due := time.Now().Add(failed.pause); due.After(l.due) {
			l.due = due
		}
	}
	l.tellDeferred(v, first, result.Deferred)
	if l.Observer != nil && l.Observer.Batch != nil {
		l.Observer.Batch(result)
	}
}

// tellDeferred logs that rows could not be published, now and then, and once that
// they were all dealt with. Other rows that go out meanwhile are no sign of that.
func (l *loop) tellDeferred(v *verdicts, first *failure, deferred int) {
	logger, now := orDefault(l.Logger), time.Now()
	were := len(l.deferred)
	for _, id := range v.published {
		delete(l.deferred, id)
	}
	for _, failed := range v.failed {
		delete(l.deferred, failed.row.ID)
		if !failed.park && len(l.deferred) < maxDeferred {
			l.deferred[failed.row.ID] = now.Add(failed.pause)
		}
	}
	for id, due := range l.deferred {
		if now.Sub(due) > forgetDeferred { // another relay has seen to it, or an operator
			delete(l.deferred, id)
		}
	}
	switch {
	case first != nil && (were == 0 || now.Sub(l.warned) >= warnEvery):
		l.warned = now
		logger.Warn("outbox relay: messages could not be published, will try each again later", "messages", deferred, "waiting", len(l.deferred),
			"id", first.row.ID, "topic", first.row.Topic, "uuid", first.row.UUID, "error", first.err)
	case were > 0 && len(l.deferred) == 0:
		logger.Info("outbox relay: messages that could not be published are dealt with")
	}
}

const (
	// warnEvery is how often it is said that there are deferred rows.
	warnEvery = time.Minute

	// maxDeferred rows are remembered at most, and forgetDeferred after they were due.
	maxDeferred    = 10_000
	forgetDeferred = time.Minute
)
