package oncemill

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Claims and settlements of effects outside of Postgres that come at the same time can
// share one statement, which is a transaction of its own: one round trip and one disk
// flush for all. None of them runs anybody's code, so nothing can fail for one of them
// alone but what Postgres answers; then each is tried again by itself.
//
// What a statement has done of which no answer came, a second try finds: a claim by its
// nonce, which each has, and a settlement by its token. A claim whose INSERT is still
// under way makes the second one wait for it.

// groupLanes is how many statements are under way at a time. While one waits for the
// disk, the other is worked on.
const groupLanes = 2

// groups collects what waits for a statement. The zero value is ready.
type groups struct {
	mu      sync.Mutex
	waiting []*grouped
	lanes   int // at work
}

// grouped is a claim to be made, or to be settled.
type grouped struct {
	d      *delivered
	settle bool
	token  int64 // of the claim to be settled
	result []byte

	done  chan struct{}
	taken *Held // the new claim; nil: the key is taken
	ended bool
	err   error
}

// sharesStatements reports whether claims are to.
func (in *Inbox) sharesStatements() bool { return in.ClaimBatch > 1 }

// share has m worked on together with others, and waits for that.
func (in *Inbox) share(m *grouped) {
	m.done = make(chan struct{})
	g := &in.groups
	g.mu.Lock()
	g.waiting = append(g.waiting, m)
	free := g.lanes < groupLanes
	if free {
		g.lanes++
	}
	g.mu.Unlock()
	if free {
		go in.runLane()
	}
	<-m.done
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
		err := in.runGroup(members)
		for _, m := range members {
			m.err = err
			close(m.done)
		}
	}
}

// groupSQL claims the keys of $3 and the following as insertGuardedSQL does, and settles
// those of $16 and the following as endSQL does. It says which it has.
const groupSQL = `
WITH session AS MATERIALIZED (
	SELECT set_config('synchronous_commit', CASE current_setting('synchronous_commit')
			WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true),
		set_config('lock_timeout', $1, true), clock_timestamp() AS now
), asked AS MATERIALIZED (
	SELECT * FROM unnest($3::text::text[], $4::text::text[], $5::text::bigint[], $6::text::text[], $7::text::text[], $8::text::text[],
			$9::text::text[], $10::text::text[], $11::text::text[], $12::text::text[], $13::text::text[], $14::text::text[])
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
	SELECT * FROM unnest($15::text::text[], $16::text::text[], $17::text::bigint[], $18::text::text[], $19::text::text[])
		WITH ORDINALITY AS ending (consumer, key, token, result, actor, nth)
	ORDER BY consumer COLLATE "C", key COLLATE "C"
), ended AS (
	UPDATE {schema}.claims AS c SET settled_at = clock_timestamp(), outcome = 'settled', result = ending.result::bytea, reason = NULL,
		in_doubt_since = NULL, ask_after = NULL
	FROM session CROSS JOIN ending
	WHERE c.consumer = ending.consumer AND c.key = ending.key AND c.token = ending.token AND c.settled_at IS NULL
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

// runGroup runs one statement for all members.
func (in *Inbox) runGroup(members []*grouped) error {
	ctx, cancel := context.WithTimeout(context.Background(), in.DrainTimeout)
	defer cancel()
	stmt, err := in.sql.prepare(ctx, groupSQL)
	if err != nil {
		return err
	}
	var claims, ends []*grouped
	for _, m := range members {
		if m.settle {
			ends = append(ends, m)
		} else {
			claims = append(claims, m)
		}
	}
	args := append([]any{milliseconds(in.LockWait), thisProcess()}, claimColumns(claims)...)
	rows, err := stmt.QueryContext(ctx, append(args, endColumns(ends)...)...)
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
			ends[nth-1].ended = true
		} else {
			claims[nth-1].taken = &h
		}
	}
	return rows.Err()
}

func claimColumns(members []*grouped) []any {
	var c [12]array
	for _, m := range members {
		o := &m.d.opts
		for i, text := range []sql.NullString{
			nullText(m.d.consumer), nullText(m.d.stored), nullText(strconv.FormatInt(o.Lease.Microseconds(), 10)), nullBytes(o.Fingerprint),
			nullText(o.Action), nullText(o.Agent), nullText(o.Scope), nullText(o.Amount), nullText(o.Currency),
			nullBytes(o.nonceDigest()), nullBytes(o.Payload), nullText(storedText(o.Actor)),
		} {
			c[i].add(text)
		}
	}
	return arrays(c[:])
}

func endColumns(members []*grouped) []any {
	var c [5]array
	for _, m := range members {
		for i, text := range []sql.NullString{
			nullText(m.d.consumer), nullText(m.d.stored), nullText(strconv.FormatInt(m.token, 10)), nullBytes(m.result), nullText(storedText(m.d.opts.Actor)),
		} {
			c[i].add(text)
		}
	}
	return arrays(c[:])
}

// nullBytes is a bytea as text; nil is NULL.
func nullBytes(b []byte) sql.NullString {
	return sql.NullString{String: `\x` + hex.EncodeToString(b), Valid: b != nil}
}

// An array is a Postgres array as text, since drivers do not agree on how arrays are
// passed.
type array struct{ strings.Builder }

var escapeElement = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

func (a *array) add(element sql.NullString) {
	if a.Len() > 0 {
		a.WriteByte(',')
	}
	if !element.Valid {
		a.WriteString("NULL")
		return
	}
	a.WriteByte('"')
	_, _ = escapeElement.WriteString(a, element.String)
	a.WriteByte('"')
}

func arrays(columns []array) (args []any) {
	for i := range columns {
		args = append(args, "{"+columns[i].String()+"}")
	}
	return args
}

// claimShared claims a key together with others. Without a claim it has to be claimed
// alone: it may be taken, or the statement has failed. ambiguous means that it may have
// been claimed, which claiming it again will show.
func (in *Inbox) claimShared(c *Consumer, d *delivered) (claim *Claim, ambiguous bool) {
	if d.opts.Nonce == nil {
		d.opts.Nonce, d.ownNonce = make([]byte, leastNonce), true
		_, _ = rand.Read(d.opts.Nonce) // it never fails
	}
	start := time.Now() // before the lease begins
	m := &grouped{d: d}
	in.share(m)
	if m.err != nil || m.taken == nil {
		return nil, isAmbiguous(m.err)
	}
	return d.claimed(c, m.taken, start, ""), false
}

// isAmbiguous reports whether a statement may have been carried out for all its error
// says.
func isAmbiguous(err error) bool {
	var network *net.OpError
	return err != nil && sqlState(err) == "" && !(errors.As(err, &network) && network.Op == "dial")
}

// settleShared settles a claim together with others. If it reports false the claim has to
// be settled alone, which will say why.
func (c *Claim) settleShared(result []byte) bool {
	m := &grouped{d: c.d, settle: true, token: c.token, result: result}
	c.consumer.in.share(m)
	return m.err == nil && m.ended
}
