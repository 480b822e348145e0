package consumers_test

import (
	"context"
	"database/sql"
	"log"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"
)

// A whole consumer. The program examples/hello is this one, with its errors
// handled and a relay.
func ExampleStack() {
	var (
		db   *sql.DB
		conn *nats.Conn
		bill message.HandlerFunc
	)
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	if err != nil {
		log.Fatal(err)
	}
	stack := consumers.Stack{
		Once:            middleware.Once{Inbox: &oncemill.Inbox{DB: db}, Key: middleware.ByJSON("order_id")},
		MaxErrors:       5,
		DeadLetterTopic: "orders.dead",
	}
	if err := stack.Apply(context.Background(), router); err != nil {
		log.Fatal(err)
	}
	orders := &jetstream.Subscriber{Conn: conn, Group: "billing"}
	router.AddHandler("billing", "orders", orders, "invoices", &outbox.Publisher{}, bill)
}
