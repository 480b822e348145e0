package outbox

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/oncemill/oncemill/internal/metadata"
)

// fetched is what a batch has taken from the table.
type fetched struct {
	rows     []Row     // in the order of their ids
	broken   []failure // rows that cannot be read
	oldest   time.Time
	first    int64            // the least id
	last     int64            // the largest id
	bytes    int              // of what is counted against batchBytes
	locked   int              // rows that the transaction holds, not all of which are read
	more     bool             // there may be further rows that are due
	widest   int              // of the rows, in such bytes
	tooLarge bool             // a row was not read because it is larger than was asked for
	stopped  map[string]int64 // hashes of ordering keys, and the first row of each that cannot be had

	origin   string // of the row that was read last, as metadata
	originOf time.Time
}

func (f *fetched) read() int { return len(f.rows) + len(f.broken) }

// createdAt keeps times that drivers cannot read, such as infinity, from stopping
// the relay.
const createdAt = `CASE WHEN created_at BETWEEN '0001-01-01Z' AND '9999-12-31Z' THEN created_at ELSE now() END`

// A source is where the rows of a loop come from.
type source interface {
	// rows returns the part of a query, from FROM on, that finds the first n rows that
	// are due, that no other relay takes and that are not left alone, in the order of their
	// ids. "" means that there are none.
	rows(ctx context.Context, tx *sql.Tx, n int, aside *aside) (from string, err error)

	// advance learns what was found. more means that another fetch should follow at once.
	advance(ctx context.Context, tx *sql.Tx, f *fetched, begun, ended time.Time) (more bool, err error)

	// reset forgets all that is known of the table.
	reset()

	// putBack learns that rows from an id on were left as they are.
	putBack(first int64)

	// pipelined tells whether a batch is fetched while another one is under way.
	pipelined(yes bool)

	// pause returns when to look again, if before the poll interval.
	pause(poll time.Duration) time.Duration

	// inOrder reports whether rows that have an ordering key in common follow each other.
	inOrder() bool
}

// fetch reads as many of the first rows that are due as fit into a number of bytes, at
// least one. It tries with rows that are all small, as they usually are: to add up sizes
// takes Postgres longer than all else.
func (l *loop) fetch(ctx context.Context, tx *sql.Tx, bytes int) (*fetched, error) {
	n := l.pace.size
	if !l.pace.wide() {
		n = l.pace.rows(bytes)
	}
	from, err := l.source.rows(ctx, tx, n, &l.aside)
	if err != nil || from == "" {
		return &fetched{}, err
	}
	if !l.pace.wide() {
		f, err := l.fetchSmall(ctx, tx, from, n, bytes/n/3)
		if err != nil || !f.tooLarge {
			return f, err
		}
	}
	return l.fetchAny(ctx, tx, from, n, bytes)
}

// fetchSmall reads rows of which no part is larger than so many bytes. The numbers
// are written into the statement because an argument costs a round trip.
func (l *loop) fetchSmall(ctx context.Context, tx *sql.Tx, from string, n, most int) (*fetched, error) {
	query := fmt.Sprintf(`
			SELECT id, dedup_id::text, topic, uuid,
			       CASE WHEN pg_column_size(metadata) <= %[1]d THEN metadata::text ELSE '{}' END,
			       CASE WHEN octet_length(ordering_key) <= %[1]d THEN ordering_key END,
			       CASE WHEN octet_length(payload) <= %[1]d THEN payload END,
			       `+createdAt+`, attempts,
			       (greatest(pg_column_size(metadata), octet_length(ordering_key), octet_length(payload)) > %[1]d)::integer`, most) + from
	var f fetched
	tooLarge, err := f.collect(ctx, tx, query, min(n, l.pace.last))
	f.tooLarge, f.locked = tooLarge > 0, f.read()
	f.more = f.locked == n
	return &f, err
}

// fetchAny reads rows of any size.
func (l *loop) fetchAny(ctx context.Context, tx *sql.Tx, from string, n, bytes int) (*fetched, error) {
	query := fmt.Sprintf(`
		WITH due AS MATERIALIZED (
			SELECT id, dedup_id, topic, uuid, metadata, ordering_key, payload, created_at, attempts%s
		), sized AS (
			SELECT due.*, count(*) OVER () AS locked,
			       coalesce(octet_length(payload), 0) + coalesce(octet_length(ordering_key), 0) + pg_column_size(metadata) AS size
			FROM due
		), summed AS (
			SELECT sized.*, sum(size) OVER (ORDER BY id) - size AS before
			FROM sized
		)
		SELECT id, dedup_id::text, topic, uuid, metadata::text, ordering_key, payload, `+createdAt+`, attempts, locked
		FROM summed
		WHERE before < %d
		ORDER BY id`, from, bytes)
	var f fetched
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
	s := newScanner()
	for rows.Next() {
		if err := rows.Scan(s.into...); err != nil {
			return 0, err
		}
		last = max(last, s.number)
		f.add(s)
	}
	return last, rows.Err()
}

// A scanner reads rows one after another. What it hands to Scan is the same for
// all of them.
type scanner struct {
	row      Row
	metadata string
	number   int
	into     []any
	chunk    []byte // for payloads and ordering keys
}

// chunkSize is how many bytes are allocated at a time.
const chunkSize = 64 << 10

func newScanner() *scanner {
	s := new(scanner)
	r := &s.row
	s.into = []any{&r.ID, &r.DedupID, &r.Topic, &r.UUID, &s.metadata, &value{s, &r.OrderingKey}, &value{s, &r.Payload},
		&r.CreatedAt, &r.Attempts, &s.number}
	return s
}

// A value is where a bytea goes. It is copied once, and not allocated by itself.
type value struct {
	scanner *scanner
	bytes   *[]byte
}

// Scan takes what a driver has read, whose memory may be its own.
func (v *value) Scan(read any) error {
	switch read := read.(type) {
	case nil:
		*v.bytes = nil
	case []byte:
		*v.bytes = v.scanner.copied(read)
	default:
		return fmt.Errorf("the driver returned a bytea as %T, want []byte", read)
	}
	return nil
}

func (s *scanner) copied(b []byte) []byte {
	n := len(b)
	switch {
	case n == 0:
		return []byte{}
	case n > chunkSize/4:
		return bytes.Clone(b)
	case n > cap(s.chunk)-len(s.chunk):
		s.chunk = make([]byte, 0, chunkSize)
	}
	begin := len(s.chunk)
	s.chunk = append(s.chunk, b...)
	return s.chunk[begin : begin+n : begin+n]
}

// add adds the row that was scanned.
func (f *fetched) add(s *scanner) {
	row := s.row
	if f.read() == 0 {
		f.first = row.ID
	}
	if f.oldest.IsZero() || row.CreatedAt.Before(f.oldest) {
		f.oldest = row.CreatedAt
	}
	f.last = row.ID
	width := len(row.Payload) + len(row.OrderingKey) + len(s.metadata)
	f.bytes += width
	f.widest = max(f.widest, width)
	var err error
	if row.Metadata, err = metadata.DecodeText(s.metadata); err != nil {
		f.broken = append(f.broken, failure{row: row, err: err, park: true})
		return
	}
	row.takeOrderingKey()
	row.Metadata[OriginMetadata] = f.originAt(row.CreatedAt)
	f.rows = append(f.rows, row)
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
