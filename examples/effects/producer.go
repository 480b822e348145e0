package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/examples/internal/streams"
)

const (
	// between is the time from one order to the next. If they came all at once, the
	// run would be over before enough has gone wrong.
	between = 15 * time.Millisecond

	// twiceEvery has every tenth order sent twice, by a customer who has pressed the
	// button again a moment later: when twiceAfter more have come.
	twiceEvery = 10
	twiceAfter = 20

	orderID = "order-id" // the metadata with an order's key
)

// messages is how many are sent for so many orders.
func messages(orders int) int { return orders + orders/twiceEvery }

// produce sends the orders, as any program would that knows nothing of Oncemill.
func produce(ctx context.Context, s setting) error {
	broker, err := streams.Connect(s.NATS)
	if err != nil {
		return err
	}
	defer broker.Close()
	publisher := &jetstream.Publisher{Conn: broker.Conn}
	begun := time.Now()
	for n := 1; n <= s.Messages+twiceAfter && ctx.Err() == nil; n++ {
		time.Sleep(time.Until(begun.Add(time.Duration(n) * between)))
		if n <= s.Messages {
			if err := publisher.Publish(orders, s.kind().newOrder(n)); err != nil {
				return err
			}
		}
		if again := n - twiceAfter; again > 0 && again%twiceEvery == 0 {
			if err := publisher.Publish(orders, s.kind().newOrder(again)); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// key is the idempotency key of the n-th order.
func key(n int) string { return fmt.Sprint("order-", n) }

// numberOf returns 0 for what is no key of an order.
func numberOf(key string) int {
	digits, _ := strings.CutPrefix(key, "order-")
	n, err := strconv.Atoi(digits)
	if err != nil {
		return 0
	}
	return n
}
