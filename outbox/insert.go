package outbox

import (
	"context"
	"database/sql"
	"sync"

	"github.com/oncemill/oncemill/internal/pgarray"
	"github.com/oncemill/oncemill/internal/txn"
	"github.com/oncemill/oncemill/schema"
)

const (
	// chunkRows and chunkBytes limit one INSERT.
	chunkRows  = 1000
	chunkBytes = 16 << 20
)

// insert writes rows in as few statements as their number and size allow. exec runs a
// statement. There are only three texts, which a Tx keeps prepared.
func insert(ctx context.Context, exec execFunc, schemaName string, rows []encodedRow) error {
	if len(rows) == 1 && rows[0].due == nil {
		row := &rows[0]
		_, err := exec(ctx, `INSERT INTO `+schema.Quote(schemaName)+insertOneSQL, row.topic, row.uuid, row.metadata, row.orderingKey, row.payload)
		return err
	}
	w := rowWriter{schema: schemaName}
	w.add(rows)
	return w.write(ctx, exec)
}

type execFunc func(ctx context.Context, query string, args ...any) (sql.Result, error)

// insertOneSQL writes one row, insertSQL several: unnest returns them in their order, and
// so the ids are given.
const (
	insertOneSQL = `.outbox (topic, uuid, metadata, ordering_key, payload) VALUES ($1::text, $2::text, $3::text::jsonb, $4::bytea, $5::bytea)`

	insertSQL = `.outbox (topic, uuid, metadata, ordering_key, payload)
SELECT topic, uuid, metadata::jsonb, ordering_key::bytea, payload::bytea
FROM unnest((SELECT $1::text::text[]), (SELECT $2::text::text[]), (SELECT $3::text::text[]), (SELECT $4::text::text[]), (SELECT $5::text::text[]))
	AS new (topic, uuid, metadata, ordering_key, payload)`
)

// A rowWriter collects rows, and copies them: whoever published them may use their memory
// again.
type rowWriter struct {
	schema    string
	chunks    []*rowChunk
	scheduled []*rowChunk // of rows that are to be sent later
}

// A rowChunk is what one INSERT writes.
type rowChunk struct {
	rows, size                               int
	topic, uuid, metadata, orderKey, payload pgarray.Array
	at, wait                                 pgarray.Array // of what is scheduled: one of both, the other is NULL
}

func (w *rowWriter) add(rows []encodedRow) {
	for i := range rows {
		row := &rows[i]
		into := &w.chunks
		if row.due != nil {
			into = &w.scheduled
		}
		c := chunkFor(into, row.size())
		if row.due != nil {
			at, wait := row.due.Texts()
			c.at.Add(at)
			c.wait.Add(wait)
		}
		c.rows++
		c.size += row.size()
		c.topic.AddText(row.topic)
		c.uuid.AddText(row.uuid)
		c.metadata.AddText(row.metadata)
		c.orderKey.AddBytes(row.orderingKey)
		c.payload.AddBytes(row.payload)
	}
}

// chunkFor returns the one of some chunks that the next row belongs to.
func chunkFor(all *[]*rowChunk, size int) *rowChunk {
	if n := len(*all); n > 0 {
		if last := (*all)[n-1]; last.rows < chunkRows && last.size+size <= chunkBytes {
			return last
		}
	}
	c := chunks.Get().(*rowChunk)
	*all = append(*all, c)
	return c
}

// chunks keeps the memory of chunks that were written, but not of large ones.
var chunks = sync.Pool{New: func() any { return new(rowChunk) }}

const mostKept = 1 << 20

func (c *rowChunk) free() {
	if c.size > mostKept {
		return
	}
	c.rows, c.size = 0, 0
	for _, array := range []*pgarray.Array{&c.topic, &c.uuid, &c.metadata, &c.orderKey, &c.payload, &c.at, &c.wait} {
		array.Reset()
	}
	chunks.Put(c)
}

func (w *rowWriter) write(ctx context.Context, exec execFunc) error {
	for _, c := range w.chunks {
		if _, err := exec(ctx, `INSERT INTO `+schema.Quote(w.schema)+insertSQL,
			c.topic.String(), c.uuid.String(), c.metadata.String(), c.orderKey.String(), c.payload.String()); err != nil {
			return err
		}
		c.free()
	}
	for _, c := range w.scheduled {
		if err := c.writeScheduled(ctx, exec, w.schema); err != nil {
			return err
		}
		c.free()
	}
	w.chunks, w.scheduled = nil, nil
	return nil
}

// Write writes what several members of a transaction have left to its end.
func (w *rowWriter) Write(ctx context.Context, tx *txn.Handle) error {
	return w.write(ctx, tx.ExecContext)
}
