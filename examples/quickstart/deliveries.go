package main

import (
	"context"
	"database/sql"
	"net/url"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Kafka keeps no count of what it has delivered. Where the broker does not, the
// workers note each delivery before anything else, with Oncemill and without: in
// statements of their own, which no handler's transaction takes back.

const createDeliveries = `CREATE TABLE deliveries (handler text, order_number text)`

// openNotes returns a pool for the notes. They do not wait for the disk: only a
// crash of Postgres, which is not among the faults, could lose the last of them.
func openNotes(s setting) (*sql.DB, error) {
	address, err := url.Parse(s.Postgres)
	if err != nil {
		return nil, err
	}
	query := address.Query()
	query.Set("synchronous_commit", "off")
	address.RawQuery = query.Encode()
	db, err := sql.Open("postgres", address.String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(4)
	db.SetMaxIdleConns(4)
	return db, nil
}

// note is the outermost middleware of a worker.
func (w *worker) note(h message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		const insert = `INSERT INTO deliveries (handler, order_number) VALUES ($1, $2)`
		handler := message.HandlerNameFromCtx(msg.Context())
		if _, err := w.notes.ExecContext(msg.Context(), insert, handler, order(msg)); err != nil {
			return nil, err
		}
		produced, err := h(msg)
		if err == nil {
			w.trouble.finished.Add(1)
		}
		return produced, err
	}
}

// noted returns how many deliveries to billing were noted, and of how many orders.
func noted(ctx context.Context, db *sql.DB) (deliveries, orders int, err error) {
	const query = `SELECT count(*), count(DISTINCT order_number) FROM deliveries WHERE handler = 'billing'`
	err = db.QueryRowContext(ctx, query).Scan(&deliveries, &orders)
	return deliveries, orders, err
}
