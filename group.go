package oncemill

import (
	"context"
	"crypto/rand"
	"database/sql"
	"database/sql/driver"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/oncemill/oncemill/internal/pgarray"
)

// Claims and settlements of effects outside of Postgres that come at the same time can
// share one statement, which is a transaction of its own: one round trip and one disk
// flush for all. None of them runs anybody's code, so nothing can fail for one of them
// alone but what Postgres answers; then each is tried again by itself.
//
// What a statement has done of which no answer came, a second try finds: a claim by its
// nonce, which each has, and a settlement by its token. A claim whose INSERT is still
// under way makes the second one wait for it.

// Normally there is one statement under way at a time: the fuller it is, the less work it
// is for each. A second one joins it while it takes longer than slowStatement, as where it
// waits for a slow disk or for a key.
const (
	groupLanes    = 2
	slowStatement = 20 * time.Millisecond
)

// groups collects what waits for a statement. The zero value is ready.
type groups struct {
	mu      sync.Mutex
	waiting []*grouped
	lanes   int // at work
}

// grouped is a claim to be made, or to be settled.
type grouped struct {
	d      *delivered
	caller context.Context // it is withdrawn if that ends before it is sent
	settle bool
	token  int64 // of the claim to be settled
	result []byte

	sent, gone bool // at most one of them, guarded by groups.mu

	done    chan struct{} // closed when nothing more is done for it
	outcome outcome
}

// outcome is what has become of a member. Without a claim, and not ended, its turn comes
// alone.
type outcome struct {
	taken     *Held // the new claim
	ended     bool
	ambiguous bool // it may have been done all the same
}

// sharesStatements reports whether claims are to.
func (in *Inbox) sharesStatements() bool { return in.ClaimBatch > 1 }

// share has m worked on together with others, and waits for that: until its caller has gone
// if it is not sent by then, and else until work ends.
func (in *Inbox) share(work context.Context, m *grouped) outcome {
	m.done = make(chan struct{})
	g := &in.groups
	g.mu.Lock()
	g.waiting = append(g.waiting, m)
	in.openLane(1)
	g.mu.Unlock()
	slow := time.NewTimer(slowStatement)
	defer slow.Stop()
	left := m.caller.Done()
	for {
		select {
		case <-m.done:
			return m.outcome
		case <-slow.C:
			g.mu.Lock()
			in.openLane(groupLanes)
			g.mu.Unlock()
		case <-left:
			if g.leave(m) {
				return outcome{}
			}
			left = nil
		case <-work.Done():
			return outcome{ambiguous: !g.leave(m)}
		}
	}
}

// openLane has somebody work on what waits, unless so many do. The caller holds groups.mu.
func (in *Inbox) openLane(most int) {
	if g := &in.groups; g.lanes < most && len(g.waiting) > 0 {
		g.lanes++
		go in.runLane()
	}
}

// leave reports whether nothing will be done for m, since it was not sent yet. Then it does
// not take the place of others either: more may leave than are served.
func (g *groups) leave(m *grouped) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	m.gone = !m.sent
	if i := slices.Index(g.waiting, m); m.gone && i >= 0 {
		g.waiting = slices.Delete(g.waiting, i, i+1)
	}
	return m.gone
}

// send reports whether m is sent, because its caller is still there, and then has add read
// it. A caller that has left may use again what it has given.
func (g *groups) send(m *grouped, add func()) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	m.gone = m.gone || m.caller.Err() != nil
	if m.sent = !m.gone; m.sent {
		add()
	}
	return m.sent
}

// tell ends the wait for m. If it was not sent it never is, however late the statement still
// may be: its turn comes alone.
func (g *groups) tell(m *grouped, o outcome) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if m.gone = !m.sent; m.sent {
		m.outcome = o
	}
	close(m.done)
}

// runLane works until nobody waits any more.
func (in *Inbox) runLane() {
	g := &in.groups
	for {
		g.mu.Lock()
		members := g.waiting[:min(len(g.waiting), in.ClaimBatch)]
		g.waiting = g.waiting[len(members):]
		if len(members) == 0 {
			g.lanes--
			g.mu.Unlock()
			return
		}
		g.mu.Unlock()
		outcomes := in.runGroup(members)
		for i, m := range members {
			g.tell(m, outcomes[i])
		}
	}
}

// runGroup runs one statement for all members, and returns what has become of each. A
// driver may wait for its answer for as long as the connection lasts, whatever its
// context says: then the lane goes on without it.
func (in *Inbox) runGroup(members []*grouped) []outcome {
	ctx, cancel := context.WithTimeout(context.Background(), in.DrainTimeout)
	defer cancel()
	answered := make(chan []outcome, 1)
	go func() { answered <- in.askGroup(ctx, members) }()
	select {
	case outcomes := <-answered:
		return outcomes
	case <-ctx.Done():
	}
	grace := time.NewTimer(rollbackGrace)
	defer grace.Stop()
	select {
	case outcomes := <-answered:
		return outcomes
	case <-grace.C:
		return allAmbiguous(members)
	}
}

func allAmbiguous(members []*grouped) []outcome {
	return slices.Repeat([]outcome{{ambiguous: true}}, len(members))
}

// askGroup makes of an error that nothing was done, or that nobody knows. What it is,
// each member will find out alone.
func (in *Inbox) askGroup(ctx context.Context, members []*grouped) (outcomes []outcome) {
	q := &groupQuery{in: in, members: members}
	defer func() {
		if panicked := recover(); panicked != nil { // the driver: callers wait in other goroutines
			in.Logger.Error(fmt.Sprintf("oncemill: a statement for several claims panicked: %v", panicked), "stack", string(debug.Stack()))
			outcomes = allAmbiguous(members)
		}
	}()
	outcomes = make([]outcome, len(members))
	err := q.run(ctx, outcomes)
	switch {
	case q.tries > 1, q.tries == 1 && isInconclusive(err):
		// A connection broke. Where there was a second try, it could not tell what the
		// first had done.
		if err != nil {
			return allAmbiguous(members)
		}
		for i := range outcomes {
			outcomes[i].ambiguous = true
		}
	case err != nil:
		clear(outcomes)
	}
	return outcomes
}

// isInconclusive reports whether a statement may have been carried out for all its error
// says. A pooler has SQLSTATEs of its own for a server that broke the connection.
func isInconclusive(err error) bool {
	state := sqlState(err)
	return err != nil && (state == "" || strings.HasPrefix(state, "08") || strings.HasPrefix(state, "57P"))
}

// groupSQL claims the keys of $3 and the following as insertGuardedSQL does, and settles
// those of $15 and the following as endSQL does. It says which it has. A claim that is
// known to be in doubt is settled alone: its message may have been parked while this
// statement waited, after its snapshot.
//
// The arrays are subqueries so that the planner does not look at them: it would plan the
// statement each time anew, which takes longer than to run it.
const groupSQL = `
WITH session AS MATERIALIZED (
	SELECT set_config('synchronous_commit', CASE current_setting('synchronous_commit')
			WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true),
		set_config('lock_timeout', $1, true), clock_timestamp() AS now
), asked AS MATERIALIZED (
	SELECT * FROM unnest((SELECT $3::text::text[]), (SELECT $4::text::text[]), (SELECT $5::text::bigint[]), (SELECT $6::text::text[]), (SELECT $7::text::text[]), (SELECT $8::text::text[]),
			(SELECT $9::text::text[]), (SELECT $10::text::text[]), (SELECT $11::text::text[]), (SELECT $12::text::text[]), (SELECT $13::text::text[]), (SELECT $14::text::text[]))
		WITH ORDINALITY AS asked (consumer, key, lease, fingerprint, action, agent, scope, amount, currency, nonce, payload, actor, nth)
	ORDER BY consumer COLLATE "C", key COLLATE "C"
), won AS (
	INSERT INTO {schema}.claims (consumer, key, token, attempts, claimed_at, lease_until, effect_until, settled_at, outcome, fingerprint,
		action, agent, scope, amount, currency, nonce)
	SELECT consumer, key, nextval('{schema}.tokens'), 1, now, now + lease * interval '1 microsecond', now + lease * interval '1 microsecond',
		NULL, NULL, fingerprint::bytea, action, agent, scope, amount::numeric, currency, nonce::bytea
	FROM session CROSS JOIN asked
	ON CONFLICT (consumer, key) DO NOTHING
	RETURNING consumer, key, token, claimed_at, lease_until
), ending AS MATERIALIZED (
	SELECT * FROM unnest((SELECT $15::text::text[]), (SELECT $16::text::text[]), (SELECT $17::text::bigint[]), (SELECT $18::text::text[]), (SELECT $19::text::text[]))
		WITH ORDINALITY AS ending (consumer, key, token, result, actor, nth)
	ORDER BY consumer COLLATE "C", key COLLATE "C"
), ended AS (
	UPDATE {schema}.claims AS c SET settled_at = clock_timestamp(), outcome = 'settled', result = ending.result::bytea, reason = NULL,
		in_doubt_since = NULL, ask_after = NULL
	FROM session CROSS JOIN ending
	WHERE c.consumer = ending.consumer AND c.key = ending.key AND c.token = ending.token AND c.outcome IS NULL AND c.in_doubt_since IS NULL
	RETURNING c.*, ending.actor, ending.nth
), unparked AS (
	DELETE FROM {schema}.parked AS p USING ended WHERE p.consumer = ended.consumer AND p.key = ended.key
), noted AS (
	INSERT INTO {schema}.events (consumer, key, kind, token, actor, action, agent, amount, currency, payload, result)
	SELECT consumer, key, 'claimed', won.token, COALESCE(actor, $2), action, agent, amount::numeric, currency, payload::bytea, NULL
	FROM won JOIN asked USING (consumer, key)
	UNION ALL
	SELECT consumer, key, 'settled', token, COALESCE(actor, $2), action, agent, amount, currency, NULL, result
	FROM ended
)
SELECT false, nth, won.token, claimed_at, lease_until FROM won JOIN asked USING (consumer, key)
UNION ALL
SELECT true, nth, token, claimed_at, lease_until FROM ended`

// groupQuery is a statement for several members. Its arguments are made when there is a
// connection for it: by then, some may have left.
type groupQuery struct {
	in      *Inbox
	members []*grouped

	// How often it was about to be sent. database/sql tries again on another connection
	// where the driver says driver.ErrBadConn, and lib/pq says so also of a connection
	// that broke before the answer came.
	tries int

	claimAt, endAt []int // whose the elements of the arguments are
	args           []string
}

// groupArg is one of the arguments of a groupQuery.
type groupArg struct {
	q *groupQuery
	i int
}

// groupArgs is how many groupSQL has.
const groupArgs = 2 + claimColumns + endColumns

func (a groupArg) Value() (driver.Value, error) {
	if a.q.args == nil {
		a.q.send()
	}
	if len(a.q.claimAt)+len(a.q.endAt) == 0 {
		return nil, errNobody
	}
	if a.i == 0 {
		a.q.tries++
	}
	return a.q.args[a.i], nil
}

// errNobody keeps a statement from being sent that would do nothing.
var errNobody = errors.New("all callers have gone")

// send makes the arguments. One key that has to wait makes all others wait, so it does
// not wait here for as long as it will alone.
func (q *groupQuery) send() {
	var claims [claimColumns]pgarray.Array
	var ends [endColumns]pgarray.Array
	for i, m := range q.members {
		switch {
		case m.settle && q.in.groups.send(m, func() { addEnd(&ends, m) }):
			q.endAt = append(q.endAt, i)
		case !m.settle && q.in.groups.send(m, func() { addClaim(&claims, m) }):
			q.claimAt = append(q.claimAt, i)
		}
	}
	q.args = slices.Concat([]string{milliseconds(q.in.LockWait / 4), thisProcess()}, arrays(claims[:]), arrays(ends[:]))
}

// run writes down what was done; that counts only if it returns nil.
func (q *groupQuery) run(ctx context.Context, outcomes []outcome) error {
	stmt, err := q.in.sql.prepare(ctx, groupSQL)
	if err != nil {
		return err
	}
	args := make([]any, groupArgs)
	for i := range args {
		args[i] = groupArg{q, i}
	}
	rows, err := stmt.QueryContext(ctx, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var settled bool
		var nth int
		h := Held{Attempts: 1}
		if err := rows.Scan(&settled, &nth, &h.Token, &h.ClaimedAt, &h.LeaseUntil); err != nil {
			return err
		}
		if settled {
			outcomes[q.endAt[nth-1]].ended = true
		} else {
			outcomes[q.claimAt[nth-1]].taken = &h
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	// A COMMIT that is cancelled while it waits for a standby succeeds without it.
	return ctx.Err()
}

// How many columns groupSQL has of claims, and of settlements.
const claimColumns, endColumns = 12, 5

func addClaim(c *[claimColumns]pgarray.Array, m *grouped) {
	o := &m.d.opts
	for i, text := range [claimColumns]sql.NullString{
		nullText(m.d.consumer), nullText(m.d.stored), nullText(strconv.FormatInt(o.Lease.Microseconds(), 10)), nullBytes(o.Fingerprint),
		nullText(o.Action), nullText(o.Agent), nullText(o.Scope), nullText(o.Amount), nullText(o.Currency),
		nullBytes(o.nonceDigest()), nullBytes(o.Payload), nullText(storedText(o.Actor)),
	} {
		c[i].Add(text)
	}
}

func addEnd(c *[endColumns]pgarray.Array, m *grouped) {
	for i, text := range [endColumns]sql.NullString{
		nullText(m.d.consumer), nullText(m.d.stored), nullText(strconv.FormatInt(m.token, 10)), nullBytes(m.result), nullText(storedText(m.d.opts.Actor)),
	} {
		c[i].Add(text)
	}
}

// nullBytes is a bytea as text; nil is NULL.
func nullBytes(b []byte) sql.NullString {
	return sql.NullString{String: `\x` + hex.EncodeToString(b), Valid: b != nil}
}

func arrays(columns []pgarray.Array) (args []string) {
	for i := range columns {
		args = append(args, columns[i].String())
	}
	return args
}

// claimShared claims a key together with others. Without a claim it has to be claimed
// alone: it may be taken, the statement has failed, or ctx has ended before. ambiguous means
// that it may have been claimed, which claiming it again will show.
func (in *Inbox) claimShared(ctx, work context.Context, c *Consumer, d *delivered) (claim *Claim, ambiguous bool) {
	if d.opts.Nonce == nil {
		d.opts.Nonce, d.ownNonce = make([]byte, leastNonce), true
		_, _ = rand.Read(d.opts.Nonce) // it never fails
	}
	start := time.Now() // before the lease begins
	o := in.share(work, &grouped{d: d, caller: ctx})
	if o.taken == nil {
		return nil, o.ambiguous
	}
	return d.claimed(c, o.taken, start, ""), false
}

// settleShared settles a claim together with others. If it reports false the claim has to
// be settled alone, which will say why.
func (c *Claim) settleShared(work context.Context, result []byte) bool {
	return c.consumer.in.share(work, &grouped{d: c.d, caller: work, settle: true, token: c.token, result: result}).ended
}
