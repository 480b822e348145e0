package main

import (
	"context"
	"strconv"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"

	"github.com/oncemill/oncemill/consumers/jetstream"
)

// produce sends orders as any program would that knows nothing of Oncemill.
func produce(_ context.Context, s setting) error {
	conn, err := nats.Connect(s.NATS)
	if err != nil {
		return err
	}
	defer conn.Close()
	publisher := &jetstream.Publisher{Conn: conn}
	const atATime = 100
	batch := make([]*message.Message, 0, atATime)
	for number := s.From; number <= s.To; number++ {
		text := strconv.Itoa(number)
		batch = append(batch, message.NewMessage("order-"+text, []byte(text)))
		if len(batch) == atATime || number == s.To {
			if err := publisher.Publish("orders", batch...); err != nil {
				return err
			}
			batch = batch[:0]
		}
	}
	return nil
}
