package main

import (
	"context"
	"strconv"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"

	"github.com/oncemill/oncemill/consumers/jetstream"
)

// produce sends the orders, as any program would that knows nothing of Oncemill.
func produce(ctx context.Context, s setting) error {
	conn, err := nats.Connect(s.NATS)
	if err != nil {
		return err
	}
	defer conn.Close()
	publisher := &jetstream.Publisher{Conn: conn}
	for number := 1; number <= s.Messages && ctx.Err() == nil; number++ {
		order := strconv.Itoa(number)
		if err := publisher.Publish(orders, message.NewMessage("order-"+order, []byte(order))); err != nil {
			return err
		}
	}
	return ctx.Err()
}
