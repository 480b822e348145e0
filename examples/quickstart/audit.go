package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
)

// A verdict is what the auditor finds. It looks only at what is in Postgres and
// at the broker's own state, and believes none of the workers.
type verdict struct {
	Published  int // orders in the stream
	Deliveries int // of orders to billing, as the broker counts them
	Duplicates int // of these, those beyond the first of each order
	Invoices   int // in the stream

	Billing, Shipping ledger
}

// A ledger compares the orders in the stream with the rows of a table.
type ledger struct {
	Rows  int
	Lost  int // orders without a row
	Twice int // rows beyond the first of each order, or for no order
}

func (v verdict) lost() int  { return v.Billing.Lost + v.Shipping.Lost }
func (v verdict) twice() int { return v.Billing.Twice + v.Shipping.Twice }

// audit says its verdict, as JSON.
func audit(ctx context.Context, s setting) error {
	conn, err := nats.Connect(s.NATS)
	if err != nil {
		return err
	}
	defer conn.Close()
	js, err := natsjs.New(conn)
	if err != nil {
		return err
	}
	db, err := openDB(s)
	if err != nil {
		return err
	}
	defer db.Close()

	var v verdict
	if err := v.askBroker(ctx, js); err != nil {
		return fmt.Errorf("ask the broker: %w", err)
	}
	sent, err := ordersIn(ctx, js, v.Published)
	if err != nil {
		return fmt.Errorf("read the orders: %w", err)
	}
	if v.Billing, err = compare(ctx, db, "bills", sent); err != nil {
		return err
	}
	if v.Shipping, err = compare(ctx, db, "shipments", sent); err != nil {
		return err
	}
	text, err := json.Marshal(v)
	say(string(text))
	return err
}

// askBroker reads the streams' and the consumers' own figures.
func (v *verdict) askBroker(ctx context.Context, js natsjs.JetStream) error {
	billing, err := look(ctx, js, orders, "billing")
	if err != nil {
		return err
	}
	shipping, err := look(ctx, js, invoices, "shipping")
	if err != nil {
		return err
	}
	if !billing.done() || !shipping.done() {
		return errors.New("not all messages are acknowledged")
	}
	v.Published, v.Invoices = billing.messages, shipping.messages
	v.Deliveries = billing.deliveries
	v.Duplicates = billing.deliveries - billing.messages
	return nil
}

// ordersIn reads the orders from their stream.
func ordersIn(ctx context.Context, js natsjs.JetStream, messages int) (sent map[string]bool, err error) {
	consumer, err := js.OrderedConsumer(ctx, orders, natsjs.OrderedConsumerConfig{})
	if err != nil {
		return nil, err
	}
	reader, err := consumer.Messages()
	if err != nil {
		return nil, err
	}
	defer reader.Stop()
	sent = make(map[string]bool, messages)
	for range messages {
		msg, err := reader.Next(natsjs.NextContext(ctx))
		if err != nil {
			return nil, err
		}
		sent[string(msg.Data())] = true
	}
	if len(sent) != messages {
		return nil, fmt.Errorf("%d messages, but only %d different orders", messages, len(sent))
	}
	return sent, nil
}

// compare counts the rows for each order.
func compare(ctx context.Context, db *sql.DB, table string, sent map[string]bool) (l ledger, err error) {
	rows, err := db.QueryContext(ctx, `SELECT order_number, count(*) FROM `+table+` GROUP BY order_number`)
	if err != nil {
		return l, err
	}
	defer rows.Close()
	l.Lost = len(sent)
	for rows.Next() {
		var order string
		var effects int
		if err := rows.Scan(&order, &effects); err != nil {
			return l, err
		}
		l.Rows += effects
		l.Twice += effects
		if sent[order] {
			l.Lost--
			l.Twice--
		}
	}
	return l, rows.Err()
}
