package main

import (
	"context"
	"database/sql"
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
	var claims, effects, rows *sql.Stmt
	l := loop{statements: map[**sql.Stmt]string{&claims: allClaimsSQL, &effects: allEffectsSQL, &rows: allRowsSQL}}
	return l.run(ctx, s, func(tx *sql.Tx, b batch) error {
		keys := textArray(b.keys)
		if _, err := tx.Stmt(claims).Exec(keys); err != nil {
			return err
		}
		if _, err := tx.Stmt(effects).Exec(keys, textArray(b.payloads)); err != nil {
			return err
		}
		_, err := tx.Stmt(rows).Exec(s.Out, keys, textArray(byteas(b.payloads)))
		return err
	})
}
