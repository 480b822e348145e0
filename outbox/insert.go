package outbox

import (
	"context"
	"strconv"
	"strings"

	"github.com/oncemill/oncemill/schema"
)

const (
	// chunkRows and chunkBytes limit one INSERT. A row takes four of the 65,535
	// parameters that the protocol allows.
	chunkRows  = 1000
	chunkBytes = 16 << 20
)

// insert writes rows in as few statements as their number and size allow.
func insert(ctx context.Context, tx Executor, schemaName, topic string, rows []encodedRow) error {
	for len(rows) > 0 {
		n := chunk(rows)
		if err := insertChunk(ctx, tx, schemaName, topic, rows[:n]); err != nil {
			return err
		}
		rows = rows[n:]
	}
	return nil
}

// chunk returns how many of the rows go into the next statement, at least one.
func chunk(rows []encodedRow) int {
	size := 0
	for i, row := range rows {
		size += row.size()
		if i > 0 && size > chunkBytes || i == chunkRows {
			return i
		}
	}
	return len(rows)
}

// insertChunk writes rows in one statement. It is a list of VALUES because
// drivers do not agree on how arrays are passed.
func insertChunk(ctx context.Context, tx Executor, schemaName, topic string, rows []encodedRow) error {
	var query strings.Builder
	query.WriteString(`INSERT INTO ` + schema.Quote(schemaName) + `.outbox (topic, uuid, metadata, ordering_key, payload) VALUES `)
	args := make([]any, 1, 1+4*len(rows))
	args[0] = topic
	for i, row := range rows {
		if i > 0 {
			query.WriteByte(',')
		}
		n := len(args)
		query.WriteString(`($1::text,$` + strconv.Itoa(n+1) + `::text,$` + strconv.Itoa(n+2) + `::text::jsonb,$` +
			strconv.Itoa(n+3) + `::bytea,$` + strconv.Itoa(n+4) + `::bytea)`)
		args = append(args, row.uuid, row.metadata, row.orderingKey, row.payload)
	}
	_, err := tx.ExecContext(ctx, query.String(), args...)
	return err
}
