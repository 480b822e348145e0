package outbox

import (
	"context"
	"database/sql"
)

// Confirm is what a batch that was fetched from a server waits for. ServerStart is, in
// SQL, which server it is.
func Confirm(ctx context.Context, db *sql.DB, server int64) error {
	return (&loop{Relay: &Relay{DB: db}}).awaitStandby(ctx, server)
}

const ServerStart = serverStart
