package main

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
)

// ship is the consumer downstream: it writes a shipment for each invoice.
func ship(ctx context.Context, s setting) error {
	w, err := newWorker(ctx, s)
	if err != nil {
		return err
	}
	defer w.close()
	handler := w.plainShipping
	if s.Oncemill {
		handler = w.shipping
	}
	w.router.AddConsumerHandler("shipping", invoices, w.broker.subscriber("shipping"), handler)
	return w.router.Run(ctx)
}

func (w *worker) shipping(msg *message.Message) error {
	tx, _ := oncemill.TxFromContext(msg.Context())
	_, err := tx.ExecContext(msg.Context(), insertShipment, order(msg))
	return err
}

// plainShipping has a transaction of its own too, since it is one statement.
func (w *worker) plainShipping(msg *message.Message) error {
	_, err := w.db.ExecContext(msg.Context(), insertShipment, order(msg))
	return err
}

const insertShipment = `INSERT INTO shipments (order_number) VALUES ($1)`
