package main

import (
	"context"
	"database/sql"
	"fmt"
	"time"
)

// Messages from long before the run have had their effects, and their claims are as old as
// that. The purge forgets those during the run; a message that is played again after that
// is refused, and a dead letter.
const (
	oldAge      = 2 * time.Hour
	oldMessages = 500
)

func oldUUID(n int) string { return fmt.Sprint("old-", n) }

func isOld(uuid string) bool {
	var n int
	_, err := fmt.Sscanf(uuid, "old-%d", &n)
	return err == nil
}

func writeOld(ctx context.Context, db *sql.DB) error {
	_, err := db.ExecContext(ctx, `
WITH old AS (INSERT INTO effects (consumer, key) SELECT $1, 'old-' || n FROM generate_series(0, $2 - 1) AS n RETURNING consumer, key)
INSERT INTO oncemill.claims (consumer, key, settled_at, outcome)
SELECT consumer, key, now() - $3 * interval '1 second', 'settled' FROM old`, batch, oldMessages, oldAge.Seconds())
	return err
}
