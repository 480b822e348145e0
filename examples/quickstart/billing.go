package main

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/outbox"
)

// bill is the worker that the demo is about: for each order it writes a bill and
// sends an invoice.
func bill(ctx context.Context, s setting) error {
	w, err := newWorker(ctx, s)
	if err != nil {
		return err
	}
	defer w.close()
	if s.Oncemill {
		w.router.AddHandler("billing", orders, w.broker.subscriber("billing"), invoices, &outbox.Publisher{}, w.billing)
	} else {
		w.router.AddHandler("billing", orders, w.broker.subscriber("billing"), invoices, w.broker.publisher(), w.plainBilling)
	}
	return w.router.Run(ctx)
}

// billing is the handler with Oncemill. It writes through the transaction in the
// message's context; the invoice goes into the outbox in the same transaction.
func (w *worker) billing(msg *message.Message) ([]*message.Message, error) {
	tx, _ := oncemill.TxFromContext(msg.Context())
	if _, err := tx.ExecContext(msg.Context(), insertBill, order(msg)); err != nil {
		return nil, err
	}
	return []*message.Message{invoiceFor(msg)}, w.trouble.inHandler()
}

// plainBilling is the same without Oncemill, as one writes it with care: in a
// transaction, and the invoice is sent, by the router, only after the commit.
func (w *worker) plainBilling(msg *message.Message) ([]*message.Message, error) {
	tx, err := w.db.BeginTx(msg.Context(), nil)
	if err != nil {
		return nil, err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(msg.Context(), insertBill, order(msg)); err != nil {
		return nil, err
	}
	if err := w.trouble.inHandler(); err != nil {
		return nil, err
	}
	return []*message.Message{invoiceFor(msg)}, tx.Commit()
}

// The table has no unique constraint: what happens twice has to be seen.
const insertBill = `INSERT INTO bills (order_number) VALUES ($1)`

// order returns an order's number, which is all that orders and invoices say.
func order(msg *message.Message) string { return string(msg.Payload) }

// invoiceFor returns the invoice for an order. The UUID is what shipping claims;
// with the ordering key a customer's invoices stay in their order, on a broker that
// keeps one.
func invoiceFor(msg *message.Message) *message.Message {
	invoice := message.NewMessage("invoice-"+order(msg), msg.Payload)
	invoice.Metadata.Set(outbox.OrderingKeyMetadata, msg.Metadata.Get(outbox.OrderingKeyMetadata))
	return invoice
}
