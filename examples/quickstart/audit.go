package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"os"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
)

// A verdict is what the auditor finds. It looks only at what the broker and
// Postgres say, and at none of the workers' own counts.
type verdict struct {
	Published  int // orders in the stream
	Deliveries int // of orders to billing, as the broker counts them
	Duplicates int // deliveries beyond the first of each order
	Effects    int // bills written

	Billing, Shipping ledger
}

// A ledger compares the orders in the stream with the rows of one table.
type ledger struct {
	Rows  int
	Lost  int // orders without a row
	Twice int // rows beyond the first of each order, or for no order
}

func (v verdict) lost() int  { return v.Billing.Lost + v.Shipping.Lost }
func (v verdict) twice() int { return v.Billing.Twice + v.Shipping.Twice }

// audit writes its verdict to standard output.
func audit(ctx context.Context, s setting) error {
	conn, err := nats.Connect(s.NATS)
	if err != nil {
		return err
	}
	defer conn.Close()
	db, err := sql.Open("postgres", s.Postgres)
	if err != nil {
		return err
	}
	defer db.Close()

	var v verdict
	if err := v.askBroker(ctx, conn); err != nil {
		return err
	}
	for table, ledger := range map[string]*ledger{"bills": &v.Billing, "shipments": &v.Shipping} {
		if err := ledger.ask(ctx, db, table, v.Published); err != nil {
			return err
		}
	}
	v.Effects = v.Billing.Rows
	return json.NewEncoder(os.Stdout).Encode(v)
}

func (v *verdict) askBroker(ctx context.Context, conn *nats.Conn) error {
	js, err := natsjs.New(conn)
	if err != nil {
		return err
	}
	stream, err := js.Stream(ctx, ordersStream)
	if err != nil {
		return err
	}
	consumer, err := stream.Consumer(ctx, "billing~orders")
	if err != nil {
		return err
	}
	v.Published = int(stream.CachedInfo().State.Msgs)
	v.Deliveries = int(consumer.CachedInfo().Delivered.Consumer)
	v.Duplicates = v.Deliveries - int(consumer.CachedInfo().Delivered.Stream)
	return nil
}

// ask compares a table with the orders 1 to published.
func (l *ledger) ask(ctx context.Context, db *sql.DB, table string, published int) error {
	row := db.QueryRowContext(ctx, fmt.Sprintf(`
		WITH orders AS (SELECT n::text AS number FROM generate_series(1, $1::int) AS n),
		     effects AS (SELECT order_number AS number, count(*) AS rows FROM %s GROUP BY 1)
		SELECT COALESCE(sum(rows), 0),
		       count(*) FILTER (WHERE effects.number IS NULL),
		       COALESCE(sum(rows - CASE WHEN orders.number IS NULL THEN 0 ELSE 1 END), 0)
		FROM orders FULL JOIN effects USING (number)`, table), published)
	return row.Scan(&l.Rows, &l.Lost, &l.Twice)
}
