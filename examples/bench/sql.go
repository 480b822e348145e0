package main

import (
	"context"
	"database/sql"
	"encoding/hex"
)

// What all of a batch is with one statement for each table. Arrays need fewer parameters
// than rows of VALUES, and can be prepared for any number.
const (
	allClaimsSQL  = `INSERT INTO oncemill.claims (consumer, key) SELECT '` + consumer + `', unnest($1::text[]) ON CONFLICT (consumer, key) DO NOTHING`
	allEffectsSQL = `INSERT INTO effects (key, payload) SELECT * FROM unnest($1::text[], $2::text[])`
	allRowsSQL    = `INSERT INTO oncemill.outbox (topic, uuid, payload) SELECT $1, * FROM unnest($2::text[], $3::bytea[])`
)

// loopSQL does the work of once-batched in as few statements as SQL needs.
func loopSQL(ctx context.Context, s setting) error {
	l := new(loop)
	var claims, effects, rows *sql.Stmt
	prepare := func() (err error) {
		for stmt, query := range map[**sql.Stmt]string{&claims: allClaimsSQL, &effects: allEffectsSQL, &rows: allRowsSQL} {
			if *stmt, err = l.conn.PrepareContext(ctx, query); err != nil {
				return err
			}
		}
		return nil
	}
	return l.run(ctx, s, prepare, func(tx *sql.Tx, b batch) error {
		keys := textArray(b.keys)
		if _, err := tx.StmtContext(ctx, claims).ExecContext(ctx, keys); err != nil {
			return err
		}
		if _, err := tx.StmtContext(ctx, effects).ExecContext(ctx, keys, textArray(b.payloads)); err != nil {
			return err
		}
		_, err := tx.StmtContext(ctx, rows).ExecContext(ctx, s.Out, keys, textArray(byteas(b.payloads)))
		return err
	})
}

func byteas(texts []string) (all []string) {
	for _, text := range texts {
		all = append(all, `\x`+hex.EncodeToString([]byte(text)))
	}
	return all
}
