package oncemill

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/oncemill/oncemill/internal/pgarray"
)

// batchClaimSQL claims the keys of $6 and the following as claimSQL does one, in bytewise
// order: two batches that wait for each other's keys in different orders would deadlock. It
// says how many it has, and which, if not all.
//
// Before, it takes the advisory locks $4, one for each consumer: shared, or, where batches
// are to take turns, exclusively. It waits for those for at most $1 milliseconds, and
// for a key for $5.
//
// The arrays are subqueries so that the planner does not look at them: it would plan the
// statement each time anew.
const batchClaimSQL = `
WITH session AS MATERIALIZED (
	SELECT current_setting('lock_timeout') AS lock_timeout,
		set_config('lock_timeout', $1, true),
		set_config('idle_in_transaction_session_timeout', $2, true)
), turns AS MATERIALIZED (
	SELECT session.lock_timeout,
		count(CASE WHEN $3::text::boolean THEN pg_advisory_xact_lock(id)::text ELSE pg_advisory_xact_lock_shared(id)::text END)
	FROM session CROSS JOIN unnest((SELECT $4::text::bigint[])) AS id
	GROUP BY session.lock_timeout
), ready AS MATERIALIZED (
	SELECT lock_timeout, set_config('lock_timeout', $5, true) FROM turns
), asked AS MATERIALIZED (
	SELECT * FROM unnest((SELECT $6::text::text[]), (SELECT $7::text::text[]), (SELECT $8::text::text[]), (SELECT $9::text::text[]))
		WITH ORDINALITY AS asked (consumer, key, outcome, fingerprint, nth)
), won AS (
	INSERT INTO {schema}.claims (consumer, key, outcome, fingerprint)
	SELECT consumer, key, outcome, fingerprint::bytea
	FROM ready CROSS JOIN asked
	ORDER BY nth
	ON CONFLICT (consumer, key) DO NOTHING
	RETURNING consumer, key
)
SELECT won.n, CASE WHEN won.n < asked.n THEN (SELECT string_agg(nth::text, ',') FROM asked JOIN won USING (consumer, key)) END,
	clock_timestamp(), current_setting('client_encoding'), set_config('lock_timeout', ready.lock_timeout, true)
FROM ready, (SELECT count(*) AS n FROM won) AS won, (SELECT count(*) AS n FROM asked) AS asked`

// batchExistingSQL is existingSQL for several keys, with one record in the log for all of
// them. LATERAL and OFFSET keep the planner from reading the whole table.
const batchExistingSQL = `
SELECT nth, COALESCE(c.outcome, ''), c.fingerprint, (SELECT ` + unconfirmed + `)
FROM unnest((SELECT $1::text::text[]), (SELECT $2::text::text[])) WITH ORDINALITY AS asked (consumer, key, nth)
CROSS JOIN LATERAL (
	SELECT outcome, fingerprint FROM {schema}.claims AS c WHERE c.consumer = asked.consumer AND c.key = asked.key OFFSET 0
) AS c`

// unclaimSQL deletes the claims of messages that did not run.
const unclaimSQL = `
DELETE FROM {schema}.claims WHERE ctid = ANY (ARRAY(
	SELECT c.ctid FROM unnest((SELECT $1::text::text[]), (SELECT $2::text::text[])) AS dropped (consumer, key)
	CROSS JOIN LATERAL (
		SELECT ctid FROM {schema}.claims AS c WHERE c.consumer = dropped.consumer AND c.key = dropped.key OFFSET 0
	) AS c))`

// purgedSQL reads consumers' watermarks; see watermarkSQL.
const purgedSQL = `
SELECT consumer, purged_before FROM {schema}.watermarks
WHERE consumer = ANY ($1::text::text[]) AND purged_before BETWEEN '0001-01-01Z' AND '9999-12-31Z'`

// batchStatements are those above, prepared.
type batchStatements struct{ claim, existing, unclaim, purged *sql.Stmt }

func (in *Inbox) prepareBatch(ctx context.Context) (s batchStatements, err error) {
	err = in.prepareAll(ctx, preparing{&s.claim, batchClaimSQL}, preparing{&s.existing, batchExistingSQL},
		preparing{&s.unclaim, unclaimSQL}, preparing{&s.purged, purgedSQL})
	return s, err
}

// defers reports whether statements may be deferred in batches.
func (in *Inbox) defers() bool { return in.Batch > 1 && !in.SendAtOnce && watchesTransactions(in.DB) }

// turnsWait is how long a batch waits for its turn, while those of other processes have
// theirs.
const turnsWait = 30 * time.Second

// claim claims the keys of all members, and tells the end to those who do not get them, if
// that can be told yet.
func (b *batch) claim() error {
	sorted := slices.Clone(b.members)
	slices.SortFunc(sorted, func(m, n *member) int {
		return cmp.Or(strings.Compare(m.d.consumer, n.d.consumer), strings.Compare(m.d.stored, n.d.stored))
	})
	consumers, keys := arraysOf(sorted)
	var outcomes, fingerprints pgarray.Array
	for _, m := range sorted {
		outcomes.AddText(string(m.d.outcome()))
		fingerprints.AddBytes(m.d.opts.Fingerprint)
	}
	var n int
	var which, lockTimeout sql.NullString
	var now time.Time
	turns := b.in.lane.takesTurns()
	err := b.t.tx.StmtContext(b.ctx, b.stmts.claim).QueryRowContext(b.ctx,
		milliseconds(turnsWait), milliseconds(b.in.IdleTimeout), strconv.FormatBool(turns), b.turnIDs(sorted),
		milliseconds(b.in.LockWait), consumers, keys, outcomes.String(), fingerprints.String()).Scan(&n, &which, &now, &b.encoding, &lockTimeout)
	if err != nil {
		return err
	}
	won := sorted
	b.hasty = !turns && lockTimeout.String == "0"
	if n < len(sorted) {
		if won, err = b.sortOut(sorted, which.String); err != nil {
			return err
		}
	}
	return b.refuseOld(won, now.Add(-clockMargin))
}

func arraysOf(members []*member) (consumers, keys string) {
	var c, k pgarray.Array
	for _, m := range members {
		c.AddText(m.d.consumer)
		k.AddText(m.d.stored)
	}
	return c.String(), k.String()
}

// turnIDs are the advisory locks of the consumers, in one order everywhere.
func (b *batch) turnIDs(sorted []*member) string {
	var ids []int64
	for i, m := range sorted {
		if i == 0 || m.d.consumer != sorted[i-1].d.consumer {
			ids = append(ids, turnID(b.in.sql.schema, m.d.consumer))
		}
	}
	slices.Sort(ids)
	texts := make([]string, len(ids))
	for i, id := range ids {
		texts[i] = strconv.FormatInt(id, 10)
	}
	return pgarray.Of(texts)
}

// turnID is the key of the advisory lock by which batches of a consumer take turns, the
// same in every process.
func turnID(quotedSchema, consumer string) int64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte("oncemill batch\x00" + quotedSchema + "\x00" + consumer))
	return int64(h.Sum64())
}

// sortOut finds out about those who did not get their keys, and returns those who did.
func (b *batch) sortOut(sorted []*member, which string) (won []*member, err error) {
	has := make([]bool, len(sorted))
	for nth := range strings.SplitSeq(which, ",") {
		if i, err := strconv.Atoi(nth); err == nil {
			has[i-1] = true
		}
	}
	var lost []*member
	for i, m := range sorted {
		if has[i] {
			won = append(won, m)
		} else {
			lost = append(lost, m)
		}
	}
	return won, b.lookUp(lost)
}

// lookUp finds by whom the keys of some members are taken. A claim that has gone again is
// asked for anew.
func (b *batch) lookUp(lost []*member) error {
	consumers, keys := arraysOf(lost)
	rows, err := b.t.tx.StmtContext(b.ctx, b.stmts.existing).QueryContext(b.ctx, consumers, keys)
	if err != nil {
		return err
	}
	defer rows.Close()
	found := make([]*settledClaim, len(lost))
	for rows.Next() {
		var nth int
		var c settledClaim
		if err := rows.Scan(&nth, &c.outcome, &c.fingerprint, &c.unconfirmed); err != nil {
			return err
		}
		found[nth-1] = &c
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for i, m := range lost {
		b.taken(m, found[i])
	}
	return nil
}

// taken notes what becomes of a member whose key is taken.
func (b *batch) taken(m *member, c *settledClaim) {
	if c == nil {
		m.tries++
		b.again([]*member{m})
		return
	}
	m.verdict, m.unconfirmed = &told{duplicate: true}, c.unconfirmed
	if err := c.refuses(m.d); err != nil {
		m.verdict, m.unconfirmed = &told{err: m.d.failed(OpClaim, err)}, false
	} else {
		b.in.noteDead(b.ctx, m.d, c)
	}
	if m.behind == nil && !m.unconfirmed { // the others when it is their turn
		b.judge(m)
	}
}

// refuseOld tells the end to messages that may have been handled, and whose claims may
// have been purged. Their new ones are deleted.
func (b *batch) refuseOld(won []*member, old time.Time) error {
	var asked []*member
	for _, m := range won {
		if origin := nullTime(m.d.opts.Origin); origin.Valid && origin.Time.Before(old) {
			asked = append(asked, m)
		}
	}
	if len(asked) == 0 {
		return nil
	}
	consumers, _ := arraysOf(asked)
	rows, err := b.t.tx.StmtContext(b.ctx, b.stmts.purged).QueryContext(b.ctx, consumers)
	if err != nil {
		return err
	}
	defer rows.Close()
	purged := make(map[string]time.Time)
	for rows.Next() {
		var consumer string
		var before time.Time
		if err := rows.Scan(&consumer, &before); err != nil {
			return err
		}
		purged[consumer] = before
	}
	for _, m := range asked {
		if m.d.opts.Origin.Before(purged[m.d.consumer]) {
			b.dropped = append(b.dropped, m)
			m.verdict = &told{err: m.d.failed(OpClaim, tooOld(m.d))}
			if m.behind == nil {
				b.judge(m)
			}
		}
	}
	return rows.Err()
}

// unclaim deletes the claims of those whose functions did not run.
func (b *batch) unclaim() error {
	if len(b.dropped) == 0 {
		return nil
	}
	consumers, keys := arraysOf(b.dropped)
	result, err := b.t.tx.StmtContext(b.ctx, b.stmts.unclaim).ExecContext(b.ctx, consumers, keys)
	if err != nil {
		return err
	}
	if n, err := result.RowsAffected(); err != nil || n != int64(len(b.dropped)) {
		return fmt.Errorf("%w: %d of %d claims were deleted of messages that did not run (%v)", ErrTxAborted, n, len(b.dropped), err)
	}
	return nil
}
