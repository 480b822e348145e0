package watermillsql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/oncemill/oncemill/schema"
)

// findTables looks for the tables, whether they are what they should be, and for the
// rights on them.
func (w *work) findTables(ctx context.Context) (err error) {
	w.messages, err = w.findTable(ctx, table{
		field: "MessagesTable", name: w.MessagesTable, otherwise: "watermill_" + w.Topic,
		columns: []string{"offset", "uuid", "payload", "metadata", "transaction_id"}, rights: "SELECT",
	})
	if err != nil {
		return err
	}
	w.offsets, err = w.findTable(ctx, table{
		field: "OffsetsTable", name: w.OffsetsTable, otherwise: "watermill_offsets_" + w.Topic,
		columns: []string{"consumer_group", "offset_acked", "last_processed_transaction_id"}, rights: "SELECT, UPDATE",
	})
	if err != nil {
		return err
	}
	_, err = w.findTable(ctx, table{field: "Schema", name: w.outbox(), columns: []string{"ordering_key"}, rights: "INSERT"})
	return err
}

// A table is what findTable looks for.
type table struct {
	field, name string // of Drain, and what is in it
	otherwise   string // the default, without quotes
	columns     []string
	rights      string // all of which are needed
}

func (w *work) findTable(ctx context.Context, t table) (name string, err error) {
	if t.name == "" {
		t.name = schema.Quote(t.otherwise)
	}
	var columns, role string
	err = w.DB.QueryRowContext(ctx, `
SELECT format('%I.%I', n.nspname, c.relname), current_user,
	(SELECT string_agg(attname, ' ') FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = to_regclass($1::text)`, t.name).Scan(&name, &role, &columns)
	if errors.Is(err, sql.ErrNoRows) {
		return "", fmt.Errorf("watermillsql: %w: there is no table %s (is Topic %q the forwarder's? tables with names of their own go into MessagesTable and OffsetsTable)", ErrTables, t.name, w.Topic)
	}
	if err != nil {
		return "", fmt.Errorf("watermillsql: look for %s %s: %w", t.field, t.name, err)
	}
	for _, column := range t.columns {
		if !slices.Contains(strings.Fields(columns), column) {
			return "", fmt.Errorf("watermillsql: %w: %s %s has no column %q but %s (those of watermill-sql v1 and of its queue schema are not supported)", ErrTables, t.field, name, column, columns)
		}
	}
	for _, right := range strings.Split(t.rights, ", ") {
		var allowed bool
		if err := w.DB.QueryRowContext(ctx, `SELECT has_table_privilege($1, $2)`, name, right).Scan(&allowed); err != nil {
			return "", fmt.Errorf("watermillsql: look for the rights on %s: %w", name, err)
		}
		if !allowed {
			return "", fmt.Errorf("watermillsql: role %q may not drain %s (GRANT %s ON %s TO %s)", role, name, t.rights, name, schema.Quote(role))
		}
	}
	return name, nil
}
