// A consumer of orders that writes a payment and sends an invoice, once for each
// order, however often Kafka delivers it.
package main

import (
	"context"
	"database/sql"
	"log"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	_ "github.com/lib/pq"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/consumers/kafka"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	db := must(sql.Open("postgres", os.Getenv("DATABASE_URL")))
	db.SetMaxOpenConns(32)
	db.SetMaxIdleConns(32)
	client := must(kgo.NewClient(kgo.SeedBrokers(strings.Split(os.Getenv("KAFKA_BROKERS"), ",")...)))
	inbox := &oncemill.Inbox{DB: db}
	router := must(message.NewRouter(message.RouterConfig{CloseTimeout: 35 * time.Second}, watermill.NewSlogLogger(slog.Default())))
	check(consumers.Stack{Once: middleware.Once{Inbox: inbox}}.Apply(ctx, router))

	orders := &kafka.Subscriber{Client: client, Group: "billing"}
	router.AddHandler("billing", "orders", orders, "invoices", &outbox.Publisher{}, bill)

	relay := &outbox.Relay{DB: db, Sink: &kafka.Sink{Client: client}, ListenURL: os.Getenv("DATABASE_URL")}
	go func() { check(relay.Run(ctx)) }() // or run `oncemill relay` beside this program
	go func() { check(inbox.Run(ctx)) }() // forgets old claims
	check(router.Run(ctx))
}

func bill(msg *message.Message) ([]*message.Message, error) {
	tx, _ := oncemill.TxFromContext(msg.Context())
	_, err := tx.ExecContext(msg.Context(), `INSERT INTO payments (order_id) VALUES ($1)`, string(msg.Payload))
	return []*message.Message{message.NewMessage(watermill.NewUUID(), msg.Payload)}, err
}

func must[T any](value T, err error) T {
	check(err)
	return value
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
