package main

import "github.com/oncemill/oncemill/internal/breach"

// A rule is one without which Oncemill does not keep its promises.
type rule struct {
	name     string
	breaches []breach.Breach
	finds    []string // classes and kinds of anomalies, of which the checker finds one at least
	atTheEnd bool     // of a run, and not along the way: until then it may just be late
	rate     int      // messages a second; 0: those of the other runs
}

// rules are what naive designs lack.
var rules = []rule{
	// The effect is there before the claim is, which is inserted at the end and may be there
	// already. A message that comes again after its commit has its effect twice.
	{name: "claim after the handler", breaches: claimLast, finds: []string{"twice effects"}},

	// A message whose transaction fails then, or whose worker dies, never comes again.
	{name: "ack before commit", breaches: ackFirst, finds: []string{"lost effects", "lost arrivals"}, atTheEnd: true},

	// A worker that was frozen longer than its lease ends an attempt that is not its own.
	{name: "no fencing", breaches: unfenced, finds: []string{"unexplained fencing", "unexplained guarded", "twice guarded", "twice settlements"}},

	// A claim that was released counts from 1 again. An attempt that was frozen meanwhile
	// has the token of the next one, and may end it.
	{name: "tokens reused", breaches: tokensOfKeys, finds: []string{"unexplained tokens"}},

	// Two batches with the same messages, as after a redelivery to another worker, wait for
	// each other's keys, and Postgres ends one of them. No effect is lost, as it is tried
	// again, but a deadlock takes as long as a second.
	{name: "unsorted batch", breaches: breach.UnsortedBatch, finds: []string{"unexplained deadlock"}},

	// A message that a batch had no time for is a duplicate the next time, and never runs.
	{name: "claims of members that did not run", breaches: breach.ClaimsOfDropped, finds: []string{"lost effects"}},

	// The messages of a run are sent, and then the run is rolled back: there arrives what is
	// no effect's child.
	{name: "returned messages published directly", breaches: publishDirectly, finds: []string{"unexplained arrivals"}},

	// Of two messages with one UUID, as where one goes to two topics of a stream, the stream
	// drops the second.
	{name: "dedup id from the message UUID", breaches: dedupByUUID, finds: []string{"lost arrivals"}, atTheEnd: true},

	// A relay finds rows that another one has published and deleted since, between its
	// snapshot and the lock, and publishes them once more, perhaps after those behind them.
	// Both have to meet within a statement, which they do the sooner the less else there is.
	{name: "lock and rows in one statement", breaches: rowsBeforeLock, finds: []string{"twice rows", "unexplained order"}, rate: 50},

	// Messages come again whose claims are gone, and run.
	{name: "purge shorter than the horizon", breaches: purgeSoon, finds: []string{"twice effects", "twice guarded", "unexplained claims"}},
}

var claimLast = []breach.Breach{{
	File: "once.go",
	Old: `	defer t.close(work)
	c, err := in.claim(work, t.tx, stmts, d)
`,
	New: `	defer t.close(work)
	if broken({rule}) {
		return false, false, in.claimLast(work, t, stmts, d, fn)
	}
	c, err := in.claim(work, t.tx, stmts, d)
`,
}, {
	File: "claimlast.go",
	New: `package oncemill

import "context"

func (in *Inbox) claimLast(work context.Context, t *transaction, stmts claimStatements, d *delivered, fn func(context.Context, Tx) error) *Error {
	var xid, idle string
	err := t.tx.QueryRowContext(work, "SELECT pg_current_xact_id()::text, set_config('idle_in_transaction_session_timeout', $1, true)",
		milliseconds(in.IdleTimeout)).Scan(&xid, &idle)
	if err != nil {
		return d.failed(OpClaim, drainedOr(work, err))
	}
	var refused error
	failed := in.runAndCommit(work, t, xid, d, func(ctx context.Context, tx Tx) error {
		if err := fn(ctx, tx); err != nil {
			return err
		}
		_, refused = in.claim(ctx, t.tx, stmts, d)
		return refused
	})
	if failed != nil && refused != nil {
		return d.failed(OpClaim, drainedOr(work, refused))
	}
	return failed
}
`,
}}

// An acknowledged message's context has ended.
var ackFirst = []breach.Breach{{
	File: "middleware/once.go",
	Old:  `if isClosed(msg.Acked()) {`,
	New:  `if isClosed(msg.Acked()) && !broken({rule}) { // it is tried again`,
}, {
	File: "middleware/once.go",
	Old:  `	return consumer.OnceWith(msg.Context(), key,`,
	New: `	delivered := msg.Context()
	if broken({rule}) {
		delivered = context.WithoutCancel(delivered)
		msg.Ack()
	}
	return consumer.OnceWith(delivered, key,`,
}, {
	File: "middleware/once.go",
	Old:  `case isClosed(msg.Acked()):`,
	New:  `case isClosed(msg.Acked()) && !broken({rule}):`,
}}

// Whoever has a claim can end it, as long as it is not settled.
var unfenced = []breach.Breach{{
	File: "guardtx.go",
	Old:  `if _, err := in.sql.prepareFor(caller, work, query); err != nil {`,
	New:  `if _, err := in.sql.prepareFor(caller, work, unfenced(query)); err != nil {`,
}, {
	File: "guardtx.go",
	Old:  `stmt, err := g.in.sql.prepare(g.ctx, query) //`,
	New:  `stmt, err := g.in.sql.prepare(g.ctx, unfenced(query)) //`,
}, {
	File: "group.go",
	Old:  `stmt, err := q.in.sql.prepare(ctx, groupSQL)`,
	New:  `stmt, err := q.in.sql.prepare(ctx, unfenced(groupSQL))`,
}, {
	File: "indoubt.go",
	Old:  `case held.Token != token:`,
	New:  `case held.Token != token && !broken({rule}):`,
}, {
	File: "unfenced.go",
	New: `package oncemill

import "strings"

func unfenced(query string) string {
	if !broken({rule}) {
		return query
	}
	switch query {
	case endSQL, releaseSQL, doubtSQL, extendSQL, postponeSQL:
		return strings.Replace(query, " AND token = $3", " AND $3::bigint IS NOT NULL", 1)
	case groupSQL:
		return strings.Replace(query, " AND c.token = ending.token", "", 1)
	}
	return query
}
`,
}}

// Each claim counts its tokens from 1.
var tokensOfKeys = []breach.Breach{{
	File: "statements.go",
	Old:  `return s.fill.Replace(query)`,
	New: `if broken({rule}) {
		next := "token + 1"
		if strings.Contains(query, "INSERT INTO {schema}.claims") {
			next = "1"
		}
		query = strings.ReplaceAll(query, "nextval('{schema}.tokens')", next)
	}
	return s.fill.Replace(query)`,
}}

// Subscribers lend the middleware their connection.
var publishDirectly = []breach.Breach{{
	File: "middleware/identity.go",
	Old:  `	return to.Publish(topic, produced...)`,
	New: `	if direct := delivery.Direct.Load(); direct != nil && broken({rule}) {
		return (*direct)(topic, produced...)
	}
	return to.Publish(topic, produced...)`,
}, {
	File: "internal/delivery/direct.go",
	New: `package delivery

import (
	"sync/atomic"

	"github.com/ThreeDotsLabs/watermill/message"
)

var Direct atomic.Pointer[func(topic string, messages ...*message.Message) error]
`,
}, {
	File: "consumers/jetstream/subscriber.go",
	Old:  `	src, err := sub.open(ctx, nil, 0)`,
	New: `	direct := (&Publisher{Conn: s.Conn}).Publish
	delivery.Direct.Store(&direct)
	src, err := sub.open(ctx, nil, 0)`,
}, {
	File: "consumers/kafka/subscriber.go",
	Old:  `	session, err := sub.begin(ctx)`,
	New: `	direct := (&Publisher{Client: s.Client}).Publish
	delivery.Direct.Store(&direct)
	session, err := sub.begin(ctx)`,
}}

var dedupByUUID = []breach.Breach{{
	File: "consumers/jetstream/sinkencode.go",
	Old:  `raw.Header[nats.MsgIdHdr] = []string{row.DedupID}`,
	New:  `raw.Header[nats.MsgIdHdr] = []string{dedupID(row)}`,
}, {
	File: "consumers/jetstream/sinkencode.go",
	Old:  `e.set(nats.MsgIdHdr, row.DedupID)`,
	New:  `e.set(nats.MsgIdHdr, dedupID(row))`,
}, {
	File: "consumers/jetstream/dedupid.go",
	New: `package jetstream

import "github.com/oncemill/oncemill/outbox"

func dedupID(row *outbox.Row) string {
	if broken({rule}) && row.UUID != "" && goodValue(row.UUID) {
		return row.UUID
	}
	return row.DedupID
}
`,
}}

// The rows are those of the snapshot from before the lock, and nothing else locks them.
var rowsBeforeLock = []breach.Breach{{
	File: "outbox/partition.go",
	Old:  `	if err := o.lock(ctx, tx); err != nil || len(o.held) == 0 {`,
	New: `	if broken({rule}) {
		return o.lockAndRead(ctx, tx, n, aside)
	}
	if err := o.lock(ctx, tx); err != nil || len(o.held) == 0 {`,
}, {
	File: "outbox/lockandread.go",
	New: `package outbox

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// lockAndRead does at once what lock and choose do, and what reads the rows.
func (o *ordered) lockAndRead(ctx context.Context, tx *sql.Tx, n int, aside *aside) (from string, err error) {
	most := partitions
	if o.busy {
		most = partitions / 2
	}
	o.held = rand.Perm(partitions)
	list := o.tails(aside)
	o.held, o.most = nil, n
	o.limit = min(max(o.limit, n/most, 1), mostLooked)
	w := window{ordered: o, aside: aside, rows: make(map[int]*look)}
	contents := make(map[int64]string)
	err = eachRow(ctx, tx, fmt.Sprintf(` + "`" + `
		SELECT part.number, row.id, row.key, row.held, row.content
		FROM (
			SELECT * FROM (VALUES %s) AS part (number, tail, but)
			WHERE CASE WHEN EXISTS (
				SELECT FROM %s
				WHERE ordering_key IS NOT NULL AND %s = part.number AND id >= part.tail AND %s
			) THEN pg_try_advisory_xact_lock(hashtextextended(%s, number)) END
			LIMIT %d
		) AS part CROSS JOIN LATERAL (
			SELECT id, %s AS key, parked_at IS NOT NULL OR not_before IS NOT NULL AND not_before > now() AS held, to_jsonb(outbox)::text AS content
			FROM %s AS outbox
			WHERE ordering_key IS NOT NULL AND %s = part.number AND id >= part.tail AND %s
				AND (part.but = '{}' OR %s <> ALL (part.but))
			ORDER BY id
			LIMIT %d
		) AS row
		ORDER BY row.id` + "`" + `, list, o.table(), partitionOf, o.to.topics, o.lockName(), most,
		keyOf, o.table(), partitionOf, o.to.topics, keyOf, o.limit), func(scan func(...any) error) error {
		return w.scan(func(into ...any) error {
			var content string
			err := scan(append(into, &content)...)
			contents[*into[1].(*int64)] = content
			if number := *into[0].(*int); !slices.Contains(o.held, number) {
				o.held = append(o.held, number)
			}
			return err
		})
	})
	if err != nil || len(o.held) == 0 {
		return "", err
	}
	w.conclude()
	o.chosen = o.chosen[:min(n, len(o.chosen))]
	if ended, err := o.longEnded(ctx, tx); err != nil || ended || len(o.chosen) == 0 {
		return "", err
	}
	rows := make([]string, len(o.chosen))
	for i, c := range o.chosen {
		rows[i] = contents[c.id]
	}
	return fmt.Sprintf(` + "`" + `
			FROM jsonb_populate_recordset(NULL::%s, '[%s]'::jsonb)
			ORDER BY id` + "`" + `, o.table(), strings.ReplaceAll(strings.Join(rows, ","), "'", "''")), nil
}
`,
}}

// Claims are kept for 3 seconds, and no message is too old.
var purgeSoon = []breach.Breach{{
	File: "purge.go",
	Old:  `	claims := &sweep{in: in, consumer: consumer, table: "claims", query: purgeClaimsSQL, keep: in.Retention + clockMargin, margin: clockMargin}`,
	New: `	claims := &sweep{in: in, consumer: consumer, table: "claims", query: purgeClaimsSQL, keep: in.Retention + clockMargin, margin: clockMargin}
	if broken({rule}) {
		claims.keep, claims.margin = 3*time.Second, 0
	}`,
}, {
	File: "purge.go",
	Old:  `		s.consumer, s.in.Retention.Microseconds(), clockMargin.Microseconds(), s.floor)`,
	New:  `		s.consumer, (s.keep - s.margin).Microseconds(), s.margin.Microseconds(), s.floor)`,
}, {
	File: "purgepace.go",
	Old:  `p.wait = min(max(wait, purgeOften), purgeEvery)`,
	New: `if broken({rule}) {
		wait = purgeOften
	}
	p.wait = min(max(wait, purgeOften), purgeEvery)`,
}, {
	File: "claim.go",
	Old:  `if err == nil && old {`,
	New:  `if err == nil && old && !broken({rule}) {`,
}, {
	File: "batchsql.go",
	Old:  `	if len(asked) == 0 {`,
	New:  `	if len(asked) == 0 || broken({rule}) {`,
}}
