package main

import (
	"context"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/outbox"
)

// customers take turns to order. Kafka keeps the order of what a customer orders.
const customers = 100

// produce sends the orders, as any program would that knows nothing of Oncemill.
func produce(ctx context.Context, s setting) error {
	broker, err := s.connect(nil)
	if err != nil {
		return err
	}
	defer broker.close()
	publisher := broker.publisher()
	begun, between := time.Now(), s.brand().spread/time.Duration(s.Messages)
	for number := 1; number <= s.Messages && ctx.Err() == nil; number++ {
		time.Sleep(time.Until(begun.Add(time.Duration(number) * between)))
		if err := publisher.Publish(orders, newOrder(number)); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func newOrder(number int) *message.Message {
	order := strconv.Itoa(number)
	msg := message.NewMessage("order-"+order, []byte(order))
	msg.Metadata.Set(outbox.OrderingKeyMetadata, strconv.Itoa(number%customers))
	return msg
}
