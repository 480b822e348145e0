package main

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/middleware"
)

const (
	createArrivals = `CREATE TABLE arrivals (topic text, uuid text, at timestamptz DEFAULT clock_timestamp())`
	insertArrival  = `INSERT INTO arrivals (topic, uuid) VALUES ($1, $2)`
)

// receive is the consumers downstream: each writes down what arrives.
func receive(ctx context.Context, s setting) error {
	b, err := newBench(s)
	if err != nil {
		return err
	}
	defer b.close()
	inbox := b.inbox()
	inbox.Batch = batchSize
	router, err := b.router()
	if err != nil {
		return err
	}
	if err := (consumers.Stack{Once: middleware.Once{Inbox: inbox}}).Apply(ctx, router); err != nil {
		return err
	}
	for _, topic := range downstream {
		router.AddConsumerHandler(topic, topic, b.broker.subscriber(roleDownstream), func(msg *message.Message) error {
			tx, _ := oncemill.TxFromContext(msg.Context())
			_, err := tx.ExecContext(msg.Context(), insertArrival, topic, msg.UUID)
			return err
		})
	}
	return b.run(ctx, inbox.Run, router)
}
