package main

import (
	"context"
	"database/sql"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// groupClaimSQL and groupOutboxSQL are batchClaimSQL of the file batchsql.go and insertSQL
// of outbox/insert.go, as a test wants it: what Once with Batch claims with, and writes the
// rows of the outbox.
const (
	groupClaimSQL = `
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

	groupOutboxSQL = `.outbox (topic, uuid, metadata, ordering_key, payload)
SELECT topic, uuid, metadata::jsonb, ordering_key::bytea, payload::bytea
FROM unnest((SELECT $1::text::text[]), (SELECT $2::text::text[]), (SELECT $3::text::text[]), (SELECT $4::text::text[]), (SELECT $5::text::text[]))
	AS new (topic, uuid, metadata, ordering_key, payload)`
)

// loopShape sends the statements of once-batched, in the same way: one for all claims, one
// text with all effects, one for all rows of the outbox.
func loopShape(ctx context.Context, s setting) error {
	var claim, rows *sql.Stmt
	l := loop{statements: map[**sql.Stmt]string{
		&claim: strings.ReplaceAll(groupClaimSQL, "{schema}", `"oncemill"`), &rows: `INSERT INTO "oncemill"` + groupOutboxSQL,
	}}
	return l.run(ctx, s, func(tx *sql.Tx, b batch) error {
		if err := claimAll(tx, claim, b); err != nil {
			return err
		}
		if _, err := tx.Exec(executeAll(b)); err != nil {
			return err
		}
		n := len(b.keys)
		_, err := tx.Stmt(rows).Exec(textArray(slices.Repeat([]string{s.Out}, n)), textArray(b.keys), textArray(slices.Repeat([]string{"{}"}, n)),
			nulls(n), textArray(byteas(b.payloads)))
		return err
	})
}

// executeAll is the text by which the handlers' effects are sent: see deferred.go.
func executeAll(b batch) string {
	var text strings.Builder
	text.WriteString("PREPARE effect (text, text) AS " + insertSQL + "\n;\n")
	for i, key := range b.keys {
		text.WriteString("EXECUTE effect(" + quoted(key) + "," + quoted(b.payloads[i]) + ");\n")
	}
	text.WriteString("DEALLOCATE effect;\n")
	return text.String()
}

func quoted(text string) string {
	text = strings.ReplaceAll(text, "'", "''")
	if strings.Contains(text, `\`) {
		return " E'" + strings.ReplaceAll(text, `\`, `\\`) + "'"
	}
	return "'" + text + "'"
}

func claimAll(tx *sql.Tx, claim *sql.Stmt, b batch) error {
	n := len(b.keys)
	sorted := slices.Sorted(slices.Values(b.keys))
	var won int
	var which, now, encoding, lockTimeout sql.NullString
	err := tx.Stmt(claim).QueryRow("30000", "60000", "false", "{1}", "2000",
		textArray(slices.Repeat([]string{consumer}, n)), textArray(sorted), textArray(slices.Repeat([]string{"settled"}, n)), nulls(n)).
		Scan(&won, &which, &now, &encoding, &lockTimeout)
	if err == nil && won != n {
		err = fmt.Errorf("%d of %d keys were claimed", won, n)
	}
	return err
}

// textArray is an array as text. Its elements are quoted.
func textArray(elements []string) string {
	var out strings.Builder
	out.WriteByte('{')
	for i, e := range elements {
		if i > 0 {
			out.WriteByte(',')
		}
		out.WriteByte('"')
		for from := 0; ; {
			next := strings.IndexAny(e[from:], `\"`)
			if next < 0 {
				out.WriteString(e[from:])
				break
			}
			out.WriteString(e[from : from+next])
			out.WriteByte('\\')
			out.WriteByte(e[from+next])
			from += next + 1
		}
		out.WriteByte('"')
	}
	out.WriteByte('}')
	return out.String()
}

// nulls is an array of so many.
func nulls(n int) string { return "{" + strings.Join(slices.Repeat([]string{"NULL"}, n), ",") + "}" }

// byteas are texts as elements of an array of bytea.
func byteas(texts []string) (all []string) {
	for _, text := range texts {
		all = append(all, `\x`+hex.EncodeToString([]byte(text)))
	}
	return all
}
