package oncemill

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
)

// A guardTx is the transaction of one step of a guarded claim.
type guardTx struct {
	in  *Inbox
	ctx context.Context
	tx  *sql.Tx
	d   *delivered
	xid string

	// What the claim is about that the last statement has changed.
	about about
}

// durableSQL comes first in each of them. An effect must not begin before its claim
// is on disk, and on the standby where there is a synchronous one, whatever the
// database's default is: synchronous_commit = off has lost commits that were
// acknowledged. The id alone does not have a COMMIT wait for the standby: a step that
// may find everything done, and write nothing, says unconfirmed.
const durableSQL = `
SELECT set_config('synchronous_commit', CASE current_setting('synchronous_commit')
		WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true),
	set_config('idle_in_transaction_session_timeout', $1, true),
	pg_current_xact_id()::text`

// guardStatements are the statements of the steps, all of them prepared before the
// first: see statements.prepare.
var guardStatements = []string{
	durableSQL, insertEventSQL, insertGuardedSQL, readHeldSQL, takeOverSQL, watermarkSQL,
	parkSQL, extendSQL, endSQL, dropParkedSQL, fenceSQL, resolvedSQL, releaseSQL, doubtSQL, noteDoubtSQL, unparkSQL, readTokenSQL, releasedSQL, postponeSQL,
}

// guarded runs step in a transaction that outlives its caller's context, and then
// what step returns, if anything, as a lent transaction. Both commit together.
func (in *Inbox) guarded(work context.Context, d *delivered, op Op, step func(g *guardTx) (lent func(context.Context, Tx) error, err error)) *Error {
	return in.guardedFor(work, work, d, op, step)
}

// guardedFor is guarded for a step that nobody wants any more if caller ends while it waits
// to be sent.
func (in *Inbox) guardedFor(caller, work context.Context, d *delivered, op Op, step func(g *guardTx) (lent func(context.Context, Tx) error, err error)) *Error {
	for _, query := range guardStatements {
		if _, err := in.sql.prepareFor(caller, work, query); err != nil {
			return d.notBegun(caller, work, op, err)
		}
	}
	t, err := begin(caller, in.DB)
	if err != nil {
		return d.notBegun(caller, work, OpBegin, err)
	}
	defer t.close(work)
	g := &guardTx{in: in, ctx: work, tx: t.tx, d: d}
	var synchronous, idle string
	err = g.row(durableSQL, milliseconds(in.IdleTimeout)).Scan(&synchronous, &idle, &g.xid)
	if gone := caller.Err(); err == nil && gone != nil {
		return d.notBegun(caller, work, op, gone)
	}
	var lent func(context.Context, Tx) error
	if err == nil {
		lent, err = step(g)
	}
	if err != nil {
		t.spoilt = isSpoilt(err)
		return d.failed(op, drainedOr(work, err))
	}
	if lent != nil {
		return in.runAndCommit(work, t, g.xid, d, lent)
	}
	if err := t.commit(work); err != nil {
		return d.failed(OpCommit, err)
	}
	return nil
}

// row runs one of the guardStatements.
func (g *guardTx) row(query string, args ...any) *sql.Row {
	stmt, err := g.in.sql.prepare(g.ctx, query) // it is prepared: this takes no connection
	if err != nil {
		return failedRow(err)
	}
	return g.tx.StmtContext(g.ctx, stmt).QueryRowContext(g.ctx, args...)
}

// happened runs one of the guardStatements that change one claim, and reports
// whether the claim was as the statement wants it.
func (g *guardTx) happened(query string, args ...any) (bool, error) {
	var n int
	err := g.row(query, args...).Scan(&n)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// An event is a line of the table events.
type event struct {
	kind    EventKind
	token   int64 // 0: none
	note    string
	about   about
	payload []byte
	result  []byte
	actor   string // "": this process
}

// aboutColumns are what changed reads.
const aboutColumns = `COALESCE(action, ''), COALESCE(agent, ''), COALESCE(amount::text, ''), COALESCE(currency, '')`

// changed runs one of the guardStatements that change one claim and return its
// aboutColumns, and reports whether the claim was as the statement wants it.
func (g *guardTx) changed(query string, args ...any) (bool, error) {
	err := g.row(query, args...).Scan(&g.about.action, &g.about.agent, &g.about.amount, &g.about.currency)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

const insertEventSQL = `
INSERT INTO {schema}.events (consumer, key, kind, token, actor, note, action, agent, amount, currency, payload, result)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9::text::numeric, $10, $11, $12)
RETURNING 1`

func (g *guardTx) event(e event) error {
	if e.actor == "" {
		e.actor = thisProcess()
	}
	if e.about == (about{}) {
		e.about = g.about
	}
	_, err := g.happened(insertEventSQL, g.d.consumer, g.d.stored, string(e.kind), sql.NullInt64{Int64: e.token, Valid: e.token != 0},
		storedText(e.actor), nullText(storedText(e.note)),
		nullText(e.about.action), nullText(e.about.agent), nullText(e.about.amount), nullText(e.about.currency), e.payload, e.result)
	return err
}

func nullText(s string) sql.NullString { return sql.NullString{String: s, Valid: s != ""} }

// thisProcess is who acts where nobody says otherwise.
var thisProcess = sync.OnceValue(func() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return host + ":" + strconv.Itoa(os.Getpid())
})

// refuse notes that somebody has tried to end a claim that is no longer theirs, and
// returns why.
func (g *guardTx) refuse(op Op, token int64, e event) (because error, err error) {
	held, err := g.readHeld()
	switch {
	case err != nil:
		return nil, err
	case held == nil:
		because = fmt.Errorf("%w: the key is free, its claim was released", ErrFenced)
	case held.Token == token && held.Outcome != "":
		because = fmt.Errorf("%w: as %s", ErrSettled, held.Outcome)
	case held.Token == token:
		because = fmt.Errorf("%w: it is in doubt, and only to be resolved", ErrInDoubt)
	case held.Outcome != "": // by a verdict, or by another attempt
		because = fmt.Errorf("%w: it has ended meanwhile, as %s (see oncemill claims events for by whom; token %d, now %d)", ErrFenced, held.Outcome, token, held.Token)
	default:
		because = fmt.Errorf("%w: token %d, now %d", ErrFenced, token, held.Token)
	}
	e.kind, e.token = EventRefused, token
	if held != nil {
		e.about = held.about()
	}
	e.note = joinNotes(fmt.Sprintf("%s refused: %v", op, because), e.note)
	return &heldError{because, held}, g.event(e)
}

func joinNotes(first, second string) string {
	if second == "" {
		return first
	}
	return first + "; " + second
}
