package main

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/outbox"
)

// bill is the worker that the demo is about. It writes a row for each order and
// sends an invoice.
func bill(ctx context.Context, s setting) error {
	p, err := connect(s, losingAcks)
	if err != nil {
		return err
	}
	defer p.close()
	router, err := p.router(ctx)
	if err != nil {
		return err
	}
	if s.Oncemill {
		router.AddHandler("billing", "orders", p.subscriber("billing"), "invoices", &outbox.Publisher{}, withOncemill)
	} else {
		router.AddHandler("billing", "orders", p.subscriber("billing"), "invoices", &jetstream.Publisher{Conn: p.nats}, without(p.db))
	}
	return router.Run(ctx)
}

// withOncemill writes through the transaction in the message's context.
func withOncemill(msg *message.Message) ([]*message.Message, error) {
	tx, ok := oncemill.TxFromContext(msg.Context())
	if !ok {
		return nil, fmt.Errorf("no transaction in the message's context")
	}
	if _, err := tx.ExecContext(msg.Context(), insertBill, order(msg)); err != nil {
		return nil, err
	}
	return []*message.Message{invoiceFor(msg)}, misbehave(msg)
}

// without is the same handler as one writes it without Oncemill.
func without(db *sql.DB) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		if _, err := db.ExecContext(msg.Context(), insertBill, order(msg)); err != nil {
			return nil, err
		}
		return []*message.Message{invoiceFor(msg)}, misbehave(msg)
	}
}

// The tables of effects have no constraints, so what happens twice is seen.
const insertBill = `INSERT INTO bills (order_number) VALUES ($1)`

func order(msg *message.Message) string { return string(msg.Payload) }

// invoiceFor has the order's UUID, so that shipping can tell a second invoice
// for the same order from another order's.
func invoiceFor(msg *message.Message) *message.Message {
	return message.NewMessage("invoice-"+msg.UUID, msg.Payload)
}
