package oncemill

import (
	"context"
	"database/sql"
	"strings"
	"time"
)

// CountError adds one to the handler errors of a message and returns their
// number so far, over all processes. It is a transaction of its own, since the
// handler's is rolled back. Run it when IsHandlerError(cause), and give the
// message up when the number gets too large.
//
// A message that is settled by now has no errors any more: the number is 0. That
// may happen to a process that was frozen while another one took over.
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
	err = c.in.readCommitted(ctx, func(tx *sql.Tx) error {
		return tx.QueryRowContext(ctx, c.in.sql.in(`
INSERT INTO {schema}.handler_errors AS h (consumer, key, last_error)
SELECT $1, $2, $3
WHERE NOT EXISTS (SELECT FROM {schema}.claims WHERE consumer = $1 AND key = $2)
ON CONFLICT (consumer, key) DO UPDATE
SET errors = h.errors + 1, last_error = EXCLUDED.last_error, last_at = now()
RETURNING errors`), c.name, d.stored, storedText(cause.Error())).Scan(&errors)
	})
	switch {
	case err == sql.ErrNoRows:
		return 0, nil
	case err != nil:
		return 0, d.failed(OpHandler, err)
	}
	return errors, nil
}

// readCommitted runs fn in a transaction. Where the database's default is a
// stricter isolation, statements that wait for each other's rows would fail.
func (in *Inbox) readCommitted(ctx context.Context, fn func(tx *sql.Tx) error) error {
	tx, err := in.DB.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after a commit there is nothing left to roll back
	if err := fn(tx); err != nil {
		return err
	}
	return tx.Commit()
}

// GiveUp sets the handler errors of a message back to none and notes in the events why
// it is given up, in the transaction tx, which claims its key as Dead.
func (c *Consumer) GiveUp(ctx context.Context, tx Tx, key, reason string) error {
	_, err := tx.ExecContext(ctx, c.in.sql.in(`
WITH forgotten AS (
	DELETE FROM {schema}.handler_errors WHERE consumer = $1 AND key = $2
)
INSERT INTO {schema}.events (consumer, key, kind, actor, note) VALUES ($1, $2, $3, $4, $5)`),
		c.name, storedKey(key), string(EventDead), thisProcess(), storedText(reason))
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
