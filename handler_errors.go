package oncemill

import (
	"context"
	"strings"
	"time"
)

// CountError adds one to the handler errors of a message and returns their
// number so far, over all processes. It is a transaction of its own, since the
// handler's is rolled back. Run it when IsHandlerError(cause), and give the
// message up when the number gets too large.
//
// ctx bounds the call, but its cancellation does not: an error that happened
// counts, also during shutdown.
func (c *Consumer) CountError(ctx context.Context, key string, cause error) (errors int, err error) {
	d := &delivered{consumer: c.name, key: key, stored: storedKey(key)}
	if key == "" {
		return 0, d.failed(OpKey, ErrNoKey)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err = c.in.DB.QueryRowContext(ctx, c.in.sql.in(`
INSERT INTO {schema}.handler_errors AS h (consumer, key, last_error) VALUES ($1, $2, $3)
ON CONFLICT (consumer, key) DO UPDATE
SET errors = h.errors + 1, last_error = EXCLUDED.last_error, last_at = now()
RETURNING errors`), c.name, d.stored, storedText(cause.Error())).Scan(&errors)
	if err != nil {
		return 0, d.failed(OpHandler, err)
	}
	return errors, nil
}

// ForgetErrors sets the handler errors of a message back to none, in the
// transaction tx.
func (c *Consumer) ForgetErrors(ctx context.Context, tx Tx, key string) error {
	_, err := tx.ExecContext(ctx, c.in.sql.in(`DELETE FROM {schema}.handler_errors WHERE consumer = $1 AND key = $2`),
		c.name, storedKey(key))
	return err
}

// storedText makes any text one that Postgres can hold, for people to read.
func storedText(s string) string {
	const most = 4096
	if len(s) > most {
		s = s[:most] + "..."
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}
