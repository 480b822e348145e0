package outbox

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/oncemill/oncemill/internal/metadata"
)

// fetched is what a batch has taken from the table.
type fetched struct {
	rows    []Row     // in the order of their ids
	broken  []failure // rows that cannot be read
	oldest  time.Time
	first   int64 // the least id
	last    int64 // the largest id
	bytes   int   // of what is counted against batchBytes
	locked  int   // rows that the transaction holds, not all of which are read
	more    bool  // there may be further rows that are due
	tooWide bool  // a row was not read because it is larger than was asked for

	origin   string // of the row that was read last, as metadata
	originOf time.Time
}

func (f *fetched) read() int { return len(f.rows) + len(f.broken) }

// columns are what of a row is read, but for its payload.
const columns = `id, dedup_id::text, topic, uuid, metadata::text, ordering_key,
		       CASE WHEN created_at BETWEEN '0001-01-01Z' AND '9999-12-31Z' THEN created_at ELSE now() END, attempts`

// due are the rows of a table from an id on that are due and that no other
// relay holds, the first n of them.
const due = `FROM %s
			WHERE id >= '%d'::bigint AND parked_at IS NULL AND (not_before IS NULL OR not_before <= now())
			ORDER BY id
			LIMIT %d
			FOR UPDATE SKIP LOCKED`

const sizeOf = `coalesce(octet_length(payload), 0) + coalesce(octet_length(ordering_key), 0) + pg_column_size(metadata)`

// fetch locks the first rows from an id on that are due, at most n, and reads as
// many of them as fit into a number of bytes, at least one. It tries with rows
// that are all small, as they usually are: to add up the sizes of rows takes
// Postgres longer than everything else.
func (l *loop) fetch(ctx context.Context, tx *sql.Tx, from int64, bytes int) (*fetched, error) {
	if !l.pace.wide {
		n := l.pace.rows(bytes)
		f, err := l.fetchSmall(ctx, tx, from, n, bytes/n)
		if err != nil || !f.tooWide {
			return f, err
		}
	}
	return l.fetchAny(ctx, tx, from, l.pace.size, bytes)
}

// fetchSmall reads rows that have at most so many bytes each. The numbers are
// written into the statement because an argument costs a round trip. A time that
// drivers cannot read, such as infinity, must not stop the relay.
func (l *loop) fetchSmall(ctx context.Context, tx *sql.Tx, from int64, n, each int) (*fetched, error) {
	query := fmt.Sprintf(`
			SELECT `+columns+`, CASE WHEN `+sizeOf+` <= %d THEN payload END, (`+sizeOf+` > %d)::integer
			`+due, each, each, l.table(), from, n)
	f := fetched{last: from}
	tooLarge, err := f.collect(ctx, tx, query, min(n, l.pace.last))
	f.tooWide, f.locked = tooLarge > 0, f.read()
	f.more = f.locked == n
	return &f, err
}

// fetchAny reads rows of any size.
func (l *loop) fetchAny(ctx context.Context, tx *sql.Tx, from int64, n, bytes int) (*fetched, error) {
	query := fmt.Sprintf(`
		WITH due AS MATERIALIZED (
			SELECT id, dedup_id, topic, uuid, metadata, ordering_key, payload, created_at, attempts
			`+due+`
		), sized AS (
			SELECT due.*, count(*) OVER () AS locked, `+sizeOf+` AS size
			FROM due
		), summed AS (
			SELECT sized.*, sum(size) OVER (ORDER BY id) - size AS before
			FROM sized
		)
		SELECT `+columns+`, payload, locked
		FROM summed
		WHERE before < %d
		ORDER BY id`, l.table(), from, n, bytes)
	f := fetched{last: from}
	locked, err := f.collect(ctx, tx, query, 0)
	f.locked = locked
	f.more = locked == n || f.read() < locked
	return &f, err
}

// collect reads what one of the statements above returns, about n rows. last is
// the largest number in their last column.
func (f *fetched) collect(ctx context.Context, tx *sql.Tx, query string, n int) (last int, err error) {
	rows, err := tx.QueryContext(ctx, query)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	f.rows = make([]Row, 0, n)
	for rows.Next() {
		number, err := f.scan(rows)
		if err != nil {
			return 0, err
		}
		last = max(last, number)
	}
	return last, rows.Err()
}

// scan adds one row.
func (f *fetched) scan(rows *sql.Rows) (number int, err error) {
	var row Row
	var encoded []byte
	err = rows.Scan(&row.ID, &row.DedupID, &row.Topic, &row.UUID, &encoded, &row.OrderingKey,
		&row.CreatedAt, &row.Attempts, &row.Payload, &number)
	if err != nil {
		return 0, err
	}
	if f.read() == 0 {
		f.first = row.ID
	}
	if f.oldest.IsZero() || row.CreatedAt.Before(f.oldest) {
		f.oldest = row.CreatedAt
	}
	f.last = row.ID
	f.bytes += len(row.Payload) + len(row.OrderingKey) + len(encoded)
	row.Metadata, err = metadata.Decode(encoded)
	if err != nil {
		f.broken = append(f.broken, failure{row: row, err: err, park: true})
		return number, nil
	}
	row.takeOrderingKey()
	row.Metadata[OriginMetadata] = f.originAt(row.CreatedAt)
	f.rows = append(f.rows, row)
	return number, nil
}

// originAt returns a time as OriginMetadata has it. Rows of one transaction have
// the same.
func (f *fetched) originAt(at time.Time) string {
	if f.origin == "" || !at.Equal(f.originOf) {
		f.origin, f.originOf = at.UTC().Format(time.RFC3339Nano), at
	}
	return f.origin
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
