package main

import (
	"context"
	"database/sql"
	"strconv"
	"strings"
)

// groupClaimSQL is what Once with Batch claims with.
const groupClaimSQL = `
INSERT INTO oncemill.claims (consumer, key, outcome, fingerprint)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]::bytea[]) ON CONFLICT (consumer, key) DO NOTHING RETURNING key`

// loopShape sends the statements of once-batched, in the same way: one for all claims, one
// for each effect, one for all rows of the outbox.
func loopShape(ctx context.Context, s setting) error {
	l := new(loop)
	var claim, effect *sql.Stmt
	prepare := func() (err error) {
		if claim, err = l.conn.PrepareContext(ctx, groupClaimSQL); err != nil {
			return err
		}
		effect, err = l.conn.PrepareContext(ctx, insertSQL)
		return err
	}
	return l.run(ctx, s, prepare, func(tx *sql.Tx, b batch) error {
		if _, err := tx.StmtContext(ctx, claim).ExecContext(ctx, claimArgs(b)...); err != nil {
			return err
		}
		for i, key := range b.keys {
			if _, err := tx.StmtContext(ctx, effect).ExecContext(ctx, key, b.payloads[i]); err != nil {
				return err
			}
		}
		_, err := tx.ExecContext(ctx, outboxSQL(len(b.keys)), outboxArgs(s.Out, b)...)
		return err
	})
}

func claimArgs(b batch) []any {
	return []any{textArray(repeated(consumer, len(b.keys))), textArray(b.keys), textArray(repeated("settled", len(b.keys))), "{" + strings.Join(repeated("NULL", len(b.keys)), ",") + "}"}
}

func repeated(s string, n int) (all []string) {
	for range n {
		all = append(all, s)
	}
	return all
}

// textArray is an array as text. Its elements are quoted.
func textArray(elements []string) string {
	quoted := make([]string, len(elements))
	for i, e := range elements {
		quoted[i] = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(e) + `"`
	}
	return "{" + strings.Join(quoted, ",") + "}"
}

// outboxSQL is what the outbox writes so many rows with.
func outboxSQL(rows int) string {
	var query strings.Builder
	query.WriteString(`INSERT INTO "oncemill".outbox (topic, uuid, metadata, ordering_key, payload) VALUES `)
	for i := range rows {
		if i > 0 {
			query.WriteByte(',')
		}
		n := 4*i + 1
		query.WriteString(`($1::text,$` + strconv.Itoa(n+1) + `::text,$` + strconv.Itoa(n+2) + `::text::jsonb,$` +
			strconv.Itoa(n+3) + `::bytea,$` + strconv.Itoa(n+4) + `::bytea)`)
	}
	return query.String()
}

func outboxArgs(topic string, b batch) []any {
	args := []any{topic}
	for i, key := range b.keys {
		args = append(args, key, "{}", []byte(nil), []byte(b.payloads[i]))
	}
	return args
}
