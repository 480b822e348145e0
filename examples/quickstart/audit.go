package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/oncemill/oncemill/examples/internal/crew"
)

// A verdict is what the auditor finds. It looks only at what is in Postgres and
// at the broker's own state, and believes none of the workers; only how often a
// broker has delivered that does not count is what they have noted.
type verdict struct {
	Published  int // orders in the topic
	Deliveries int // of orders to billing: see deliveries.go
	Duplicates int // of these, those beyond the first of each order
	Invoices   int // in the topic

	Billing, Shipping ledger
}

// A ledger compares the orders in the topic with the rows of a table.
type ledger struct {
	Rows  int
	Lost  int // orders without a row
	Twice int // rows beyond the first of each order, or for no order
}

func (v verdict) lost() int  { return v.Billing.Lost + v.Shipping.Lost }
func (v verdict) twice() int { return v.Billing.Twice + v.Shipping.Twice }

// audit says its verdict, as JSON.
func audit(ctx context.Context, s setting) error {
	broker, err := s.connect(nil)
	if err != nil {
		return err
	}
	defer broker.close()
	db, err := crew.OpenDB(s.Postgres)
	if err != nil {
		return err
	}
	defer db.Close()

	var v verdict
	if err := v.askBroker(ctx, broker); err != nil {
		return fmt.Errorf("ask the broker: %w", err)
	}
	if !s.brand().counts {
		if err := v.readNotes(ctx, db); err != nil {
			return fmt.Errorf("read what the workers noted: %w", err)
		}
	}
	sent, err := ordersIn(ctx, broker, v.Published)
	if err != nil {
		return fmt.Errorf("read the orders: %w", err)
	}
	if s.Oncemill {
		if err := checkInvoices(ctx, broker, v.Invoices, sent); err != nil {
			return fmt.Errorf("read the invoices: %w", err)
		}
	}
	if v.Billing, err = compare(ctx, db, "bills", sent); err != nil {
		return err
	}
	if v.Shipping, err = compare(ctx, db, "shipments", sent); err != nil {
		return err
	}
	text, err := json.Marshal(v)
	crew.Say(string(text))
	return err
}

// askBroker reads the broker's own figures.
func (v *verdict) askBroker(ctx context.Context, b broker) error {
	billing, err := b.look(ctx, orders, "billing")
	if err != nil {
		return err
	}
	shipping, err := b.look(ctx, invoices, "shipping")
	if err != nil {
		return err
	}
	if billing.Waiting+shipping.Waiting > 0 {
		return errors.New("not all messages are acknowledged")
	}
	v.Published, v.Invoices = billing.Messages, shipping.Messages
	v.Deliveries = billing.Deliveries
	v.Duplicates = billing.Deliveries - billing.Messages
	return nil
}

// readNotes counts deliveries for a broker that does not.
func (v *verdict) readNotes(ctx context.Context, db *sql.DB) error {
	deliveries, orders, err := noted(ctx, db)
	if err != nil {
		return err
	}
	if orders != v.Published {
		return fmt.Errorf("of %d orders only %d were delivered", v.Published, orders)
	}
	v.Deliveries, v.Duplicates = deliveries, deliveries-orders
	return nil
}

// ordersIn reads the orders from their topic.
func ordersIn(ctx context.Context, b broker, messages int) (sent map[string]bool, err error) {
	all, err := b.payloads(ctx, orders, messages)
	if err != nil {
		return nil, err
	}
	sent = make(map[string]bool, messages)
	for _, order := range all {
		sent[order] = true
	}
	if len(sent) != messages {
		return nil, fmt.Errorf("%d messages, but only %d different orders", messages, len(sent))
	}
	return sent, nil
}

// checkInvoices checks that there is an invoice for each order and for nothing
// else. Some are in the topic twice, where a relay was killed.
func checkInvoices(ctx context.Context, b broker, messages int, sent map[string]bool) error {
	all, err := b.payloads(ctx, invoices, messages)
	if err != nil {
		return err
	}
	billed := make(map[string]bool, len(sent))
	for _, order := range all {
		if !sent[order] {
			return fmt.Errorf("one is for %q, which is no order", order)
		}
		billed[order] = true
	}
	if len(billed) != len(sent) {
		return fmt.Errorf("there are some for %d orders, of %d", len(billed), len(sent))
	}
	return nil
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
