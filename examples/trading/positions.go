package main

import (
	"context"
	"database/sql"
	"errors"

	"github.com/oncemill/oncemill"
)

// createTables creates the desk's own tables. In production a migration does that.
func createTables(ctx context.Context, db *sql.DB) error {
	_, err := db.ExecContext(ctx, `
CREATE TABLE IF NOT EXISTS positions (
	symbol    text PRIMARY KEY,
	quantity  numeric NOT NULL,
	opened_by text NOT NULL
);
CREATE TABLE IF NOT EXISTS corrections (
	order_id text NOT NULL,
	symbol   text NOT NULL,
	quantity numeric NOT NULL,
	at       timestamptz NOT NULL DEFAULT now()
)`)
	return err
}

// openedBy returns the order that opened the position in a symbol, "" if there is none.
func openedBy(ctx context.Context, db *sql.DB, symbol string) (orderID string, err error) {
	err = db.QueryRowContext(ctx, `SELECT opened_by FROM positions WHERE symbol = $1`, symbol).Scan(&orderID)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return orderID, err
}

// book changes the position by an order that was placed, in the transaction that
// settles its claim.
func book(ctx context.Context, tx oncemill.Tx, o order) error {
	_, err := tx.ExecContext(ctx, `
INSERT INTO positions AS p (symbol, quantity, opened_by)
VALUES ($1, CASE WHEN $2 = 'sell' THEN -$3::numeric ELSE $3::numeric END, $4)
ON CONFLICT (symbol) DO UPDATE SET quantity = p.quantity + EXCLUDED.quantity`, o.Symbol, o.Side, o.Quantity, o.ID)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `DELETE FROM positions WHERE symbol = $1 AND quantity = 0`, o.Symbol)
	return err
}

// correct drops the position that an exit was to close, in the transaction that settles
// the exit as failed: a broker that refuses to sell it does not hold it. Who trusts
// brokers less asks it for its positions here.
func correct(ctx context.Context, tx oncemill.Tx, o order) error {
	if o.Purpose != "exit" {
		return nil
	}
	_, err := tx.ExecContext(ctx, `
WITH phantom AS (DELETE FROM positions WHERE symbol = $1 RETURNING symbol, quantity)
INSERT INTO corrections (order_id, symbol, quantity) SELECT $2, symbol, quantity FROM phantom`, o.Symbol, o.ID)
	return err
}
