package main

import (
	"context"
	"database/sql"
	"encoding/hex"
	"fmt"
	"strings"
)

// The limit is no server: its callers have the guard's statement run themselves, by as
// many connections as the guard has at it, without HTTP, JSON, tokens, or anything else
// that a guard does. No guard in front of this database can be faster.
type limit struct {
	stmt  *sql.Stmt
	queue chan *limitCall
}

const (
	limitLanes = 1  // statements at a time
	limitBatch = 64 // claims and settlements in one
)

// limitSQL is groupSQL of the file group.go, as a test wants it: it claims the keys of $4,
// settles those of $16, and notes both in the events.
const limitSQL = `
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
	INSERT INTO oncemill.claims (consumer, key, token, attempts, claimed_at, lease_until, effect_until, settled_at, outcome, fingerprint,
		action, agent, scope, amount, currency, nonce)
	SELECT consumer, key, nextval('oncemill.tokens'), 1, now, now + lease * interval '1 microsecond', now + lease * interval '1 microsecond',
		NULL, NULL, fingerprint::bytea, action, agent, scope, amount::numeric, currency, nonce::bytea
	FROM session CROSS JOIN asked
	ON CONFLICT (consumer, key) DO NOTHING
	RETURNING consumer, key, token, claimed_at, lease_until
), ending AS MATERIALIZED (
	SELECT * FROM unnest((SELECT $15::text::text[]), (SELECT $16::text::text[]), (SELECT $17::text::bigint[]), (SELECT $18::text::text[]), (SELECT $19::text::text[]))
		WITH ORDINALITY AS ending (consumer, key, token, result, actor, nth)
	ORDER BY consumer COLLATE "C", key COLLATE "C"
), ended AS (
	UPDATE oncemill.claims AS c SET settled_at = clock_timestamp(), outcome = 'settled', result = ending.result::bytea, reason = NULL,
		in_doubt_since = NULL, ask_after = NULL
	FROM session CROSS JOIN ending
	WHERE c.consumer = ending.consumer AND c.key = ending.key AND c.token = ending.token AND c.outcome IS NULL AND c.in_doubt_since IS NULL
	RETURNING c.*, ending.actor, ending.nth
), unparked AS (
	DELETE FROM oncemill.parked AS p USING ended WHERE p.consumer = ended.consumer AND p.key = ended.key
), noted AS (
	INSERT INTO oncemill.events (consumer, key, kind, token, actor, action, agent, amount, currency, payload, result)
	SELECT consumer, key, 'claimed', won.token, COALESCE(actor, $2), action, agent, amount::numeric, currency, payload::bytea, NULL
	FROM won JOIN asked USING (consumer, key)
	UNION ALL
	SELECT consumer, key, 'settled', token, COALESCE(actor, $2), action, agent, amount, currency, NULL, result
	FROM ended
)
SELECT false, nth, won.token, claimed_at, lease_until FROM won JOIN asked USING (consumer, key)
UNION ALL
SELECT true, nth, token, claimed_at, lease_until FROM ended`

// limitCall is a claim, or with a token a settlement.
type limitCall struct {
	id, turn, token string
	done            chan error
}

func (s *stage) startLimit(ctx context.Context) (contender, error) {
	l := &limit{queue: make(chan *limitCall, s.options.callers)}
	var err error
	if l.stmt, err = s.db.PrepareContext(ctx, limitSQL); err != nil {
		return contender{}, err
	}
	for range limitLanes {
		go l.run()
	}
	s.closers = append(s.closers, func() error { close(l.queue); return l.stmt.Close() })
	return contender{name: "limit", dial: func(context.Context) (caller, error) { return l, nil }, check: s.checkClaims}, nil
}

func (l *limit) claim(turn, id string) (token string, err error) {
	call := &limitCall{id: id, turn: turn, done: make(chan error, 1)}
	l.queue <- call
	err = <-call.done
	return call.token, err
}

func (l *limit) settle(id, token string) error {
	call := &limitCall{id: id, token: token, done: make(chan error, 1)}
	l.queue <- call
	return <-call.done
}

func (l *limit) close() error { return nil }

// run is one lane: it takes all that wait.
func (l *limit) run() {
	for first := range l.queue {
		calls := []*limitCall{first}
	collect:
		for len(calls) < limitBatch {
			select {
			case next := <-l.queue:
				calls = append(calls, next)
			default:
				break collect
			}
		}
		err := l.send(calls)
		for _, call := range calls {
			if err == nil && call.token == "" {
				call.done <- fmt.Errorf("%s was not claimed", call.id)
			} else {
				call.done <- err
			}
		}
	}
}

func (l *limit) send(calls []*limitCall) error {
	var claims []*limitCall
	columns := make([][]string, 17) // $3 to $19
	add := func(from int, values ...string) {
		for i, value := range values {
			columns[from-3+i] = append(columns[from-3+i], value)
		}
	}
	const null = "NULL"
	for _, c := range calls {
		if c.token == "" {
			claims = append(claims, c)
			add(3, "limit", c.id, "300000000", null, c.turn, null, null, null, null, bytea(c.id), null, null)
		} else {
			add(15, "limit", c.id, c.token, bytea(`{"order":"`+c.id+`"}`), null)
		}
	}
	args := []any{"5000", "bench"}
	for _, column := range columns {
		args = append(args, "{"+strings.Join(column, ",")+"}")
	}
	rows, err := l.stmt.Query(args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var settled bool
		var nth int
		var token, claimed, lease string
		if err := rows.Scan(&settled, &nth, &token, &claimed, &lease); err != nil {
			return err
		}
		if !settled {
			claims[nth-1].token = token
		}
	}
	return rows.Err()
}

// bytea is one as an element of an array.
func bytea(s string) string { return `"\\x` + hex.EncodeToString([]byte(s)) + `"` }
