package oncemill

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/oncemill/oncemill/internal/durable"
)

// An Outcome says how a claim was settled.
type Outcome string

const (
	// Settled: the handler's effects were committed with the claim.
	Settled Outcome = "settled"
	// Dead: the message was given up and a dead letter committed with the claim.
	Dead Outcome = "dead"
	// Failed: an effect outside of Postgres did not happen and never will.
	Failed Outcome = "failed"
)

// clockMargin is how far apart the clocks of the broker and of Postgres may be.
// A message this old is compared with the purge's watermark, and the purge
// leaves claims alone that are not older than its watermark by as much.
const clockMargin = 5 * time.Minute

// claimed is what the claim statement answers.
type claimed struct {
	won      bool   // the key was free and is now claimed by this transaction
	old      bool   // the message's origin lies back so far that a purge matters
	xid      string // identifies the transaction, where won
	existing *settledClaim
}

// settledClaim is a claim that another transaction has committed.
type settledClaim struct {
	outcome     Outcome // "": it is guarded, and not settled yet
	fingerprint []byte
	unconfirmed bool // a standby may lack it until the transaction that has read it is committed
}

// claimSQL inserts the claim, waiting at most $5 milliseconds for a transaction
// that has inserted the same key and not ended yet. Whether it then finds the
// key taken is decided by that transaction's end, which READ COMMITTED lets the
// statement see.
//
// The settings ride on this statement to spare a round trip. lock_timeout is
// put back before it ends, so that the handler's own statements run under the
// session's; the join makes sure that this comes after the insert.
const claimSQL = `
WITH session AS MATERIALIZED (
	SELECT current_setting('lock_timeout') AS lock_timeout,
		set_config('lock_timeout', $5, true),
		set_config('idle_in_transaction_session_timeout', $6, true)
), won AS (
	INSERT INTO {schema}.claims (consumer, key, outcome, fingerprint)
	SELECT $1, $2, $3, $4 FROM session
	ON CONFLICT (consumer, key) DO NOTHING
	RETURNING 1
)
SELECT won.n, COALESCE($7::timestamptz < clock_timestamp() - $8 * interval '1 second', false),
	COALESCE(pg_current_xact_id_if_assigned()::text, ''),
	set_config('lock_timeout', session.lock_timeout, true)
FROM session, (SELECT count(*) AS n FROM won) AS won`

// existingSQL reads the claim that kept claimSQL from inserting. It has to be a
// statement of its own: one that waited for the other transaction still has the
// snapshot from before that transaction's end.
const existingSQL = `SELECT COALESCE(outcome, ''), fingerprint, ` + unconfirmed + ` FROM {schema}.claims WHERE consumer = $1 AND key = $2`

// unconfirmed is true where COMMITs wait for a synchronous standby, and then has the
// transaction's own COMMIT wait for it.
//
// A claim that can be read need not be on the standby. A COMMIT that waits for that is on
// disk already, and if it is waited for no longer, since its backend was terminated or the
// server was killed and started again, its transaction is as committed as any other. Whoever
// waited got an error. If a message counted as handled by such a claim, and the standby
// took over without ever having received it, the message would be lost.
//
// A standby receives the log in its order. A transaction that reads the claim and then
// commits is behind it in the log, on the same server whatever happens: when its COMMIT has
// returned, the standby has the claim. But a COMMIT waits only if there is something of its
// transaction in the log, for which having an id is not enough; hence the message, of which
// nobody takes notice. Where there is no synchronous standby, or this session's COMMITs
// do not wait for it, nothing is written.
const unconfirmed = `CASE WHEN ` + durable.Waits + `
	THEN pg_logical_emit_message(true, 'oncemill'::text, ''::text) IS NOT NULL ELSE false END`

// watermarkSQL too needs a snapshot taken after the claim was inserted: then
// whoever purged an older claim of this key has committed the watermark before.
const watermarkSQL = `SELECT $2::timestamptz < purged_before FROM {schema}.watermarks WHERE consumer = $1`

// claimStatements are claimSQL and what may have to follow it, prepared.
type claimStatements struct{ claim, existing, watermark *sql.Stmt }

func (in *Inbox) prepareClaim(ctx context.Context) (s claimStatements, err error) {
	err = in.prepareAll(ctx, preparing{&s.claim, claimSQL}, preparing{&s.existing, existingSQL}, preparing{&s.watermark, watermarkSQL})
	return s, err
}

// preparing is a query, and where it goes when it is prepared.
type preparing struct {
	stmt  **sql.Stmt
	query string
}

// prepareAll prepares what a transaction will run, and what handlers have run often. No
// connection may be held yet: see statements.prepare.
func (in *Inbox) prepareAll(ctx context.Context, all ...preparing) (err error) {
	in.sql.prepareWanted(ctx, in.defers())
	for _, p := range all {
		if *p.stmt, err = in.sql.prepare(ctx, p.query); err != nil {
			return err
		}
	}
	return nil
}

// claim claims the key of d in tx, or finds who has. It returns ErrInFlight,
// ErrKeyReused or ErrTooOld where the message must not run.
func (in *Inbox) claim(ctx context.Context, tx *sql.Tx, stmts claimStatements, d *delivered) (claimed, error) {
	c, err := in.insertClaim(ctx, tx, stmts.claim, d)
	if err != nil {
		switch state := sqlState(err); {
		case state == "55P03":
			return c, fmt.Errorf("%w: waited %v for its transaction", ErrInFlight, in.LockWait)
		case state == "57014" && ctx.Err() == nil:
			return c, fmt.Errorf("%w: waited for its transaction until statement_timeout", ErrInFlight)
		}
		return c, err
	}
	if !c.won {
		c.existing, err = readClaim(ctx, tx, stmts.existing, d)
		return c, err
	}
	if c.old {
		return c, checkWatermark(ctx, tx, stmts.watermark, d)
	}
	return c, nil
}

func (in *Inbox) insertClaim(ctx context.Context, tx *sql.Tx, stmt *sql.Stmt, d *delivered) (c claimed, err error) {
	var n int
	var lockTimeout string
	row := tx.StmtContext(ctx, stmt).QueryRowContext(ctx,
		d.consumer, d.stored, string(d.outcome()), d.opts.Fingerprint,
		milliseconds(in.LockWait), milliseconds(in.IdleTimeout),
		nullTime(d.opts.Origin), int64(clockMargin/time.Second))
	err = row.Scan(&n, &c.old, &c.xid, &lockTimeout)
	c.won = n == 1
	return c, err
}

// readClaim returns nil where the claim has gone again in the meantime.
func readClaim(ctx context.Context, tx *sql.Tx, stmt *sql.Stmt, d *delivered) (*settledClaim, error) {
	var c settledClaim
	err := tx.StmtContext(ctx, stmt).QueryRowContext(ctx, d.consumer, d.stored).Scan(&c.outcome, &c.fingerprint, &c.unconfirmed)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, nil
	case err == nil:
		err = c.refuses(d)
	}
	if err != nil {
		return nil, err
	}
	return &c, nil
}

// refuses returns why a message must not count as handled by this claim, if so.
func (c *settledClaim) refuses(d *delivered) error {
	switch {
	case d.opts.Fingerprint != nil && c.fingerprint != nil && !bytes.Equal(d.opts.Fingerprint, c.fingerprint):
		return ErrKeyReused
	case c.outcome == "":
		return fmt.Errorf("%w: the claim of an effect that is not settled", ErrInFlight)
	}
	return nil
}

func checkWatermark(ctx context.Context, tx *sql.Tx, stmt *sql.Stmt, d *delivered) error {
	var old bool
	err := tx.StmtContext(ctx, stmt).QueryRowContext(ctx, d.consumer, nullTime(d.opts.Origin)).Scan(&old)
	if errors.Is(err, sql.ErrNoRows) { // nothing was ever purged
		return nil
	}
	if err == nil && old {
		err = tooOld(d)
	}
	return err
}

func tooOld(d *delivered) error {
	return fmt.Errorf("%w: it dates from %s", ErrTooOld, d.opts.Origin.UTC().Format(time.RFC3339))
}

func milliseconds(d time.Duration) string {
	return strconv.FormatInt(max(d.Milliseconds(), 1), 10)
}

// nullTime is t as Postgres takes it: not with every zone that Go can parse, and
// not with every year. A message from such a year has no known origin.
func nullTime(t time.Time) sql.NullTime {
	t = t.UTC()
	return sql.NullTime{Time: t, Valid: !t.IsZero() && t.Year() >= 1 && t.Year() <= 9999}
}
