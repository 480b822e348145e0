package outbox

import (
	"context"
	"database/sql"
)

// MoveDue moves scheduled rows in a transaction of the test.
func MoveDue(ctx context.Context, tx *sql.Tx, schemaName string, most int) (int, error) {
	m, err := moveDue(ctx, tx, schemaName, duePosition{}, most)
	return m.moved, err
}

// NextDueSQL and MoveDueSQL are what a relay runs.
func NextDueSQL(schemaName string) string { return nextDueSQL(schemaName, duePosition{}) }

func MoveDueSQL(schemaName string, most int) string {
	return moveDueSQL(schemaName, duePosition{}, most)
}

// ListSQL is what List runs for a Filter without values.
func (a *Admin) ListSQL(f Filter, most int) string {
	var args []any
	return a.listSQL(f, Entry{}, most, &args)
}
