package main

import (
	"context"
	"database/sql"
	"log/slog"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/examples/internal/crew"
	"github.com/oncemill/oncemill/examples/internal/streams"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"
)

const batchSize = 128

// A bench is what every worker works at.
type bench struct {
	db     *sql.DB
	broker *streams.Broker
	router *message.Router
	inbox  *oncemill.Inbox
}

func newBench(s setting, batch int) (b *bench, err error) {
	b = new(bench)
	if b.db, err = crew.OpenDB(s.Postgres); err != nil {
		return nil, err
	}
	b.inbox = &oncemill.Inbox{DB: b.db, Batch: batch, Retention: retention, EventRetention: retention}
	if b.broker, err = streams.Connect(s.NATS); err != nil {
		return nil, err
	}
	b.router, err = message.NewRouter(message.RouterConfig{}, watermill.NewSlogLogger(slog.Default()))
	return b, err
}

// run runs the router, the purge and what else there is until ctx ends.
func (b *bench) run(ctx context.Context, beside ...func(context.Context) error) error {
	defer b.db.Close()
	defer b.broker.Close()
	return crew.Together(ctx, append(beside, b.router.Run, b.inbox.Run)...)
}

// The ledgers have no unique constraint: what happens twice has to be seen. Their ids are
// for whoever counts along the way.
const (
	createEffects  = `CREATE TABLE effects (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, number bigint NOT NULL)`
	createArrivals = `CREATE TABLE arrivals (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, number bigint NOT NULL, took real NOT NULL)`

	insertEffect  = `INSERT INTO effects (number) VALUES ($1)`
	insertArrival = `INSERT INTO arrivals (number, took) VALUES ($1, $2)` // milliseconds since it was sent
)

// work handles orders: each is an effect, and has a child.
func work(ctx context.Context, s setting) error {
	b, err := newBench(s, batchSize)
	if err != nil {
		return err
	}
	if err := (consumers.Stack{Once: middleware.Once{Inbox: b.inbox}}).Apply(ctx, b.router); err != nil {
		return err
	}
	handle := func(msg *message.Message) ([]*message.Message, error) {
		number, err := numberOf(msg)
		if err != nil {
			return nil, err
		}
		tx, ok := oncemill.TxFromContext(msg.Context())
		if !ok {
			return nil, oncemill.ErrNoTx
		}
		_, err = tx.ExecContext(msg.Context(), insertEffect, number)
		return []*message.Message{message.NewMessage(msg.UUID, msg.Payload)}, err
	}
	b.router.AddHandler(orders, orders, subscriber(b.broker, orders, inFlight), children, &outbox.Publisher{}, handle)
	return b.run(ctx)
}

// receive is the consumer downstream: it writes down what arrives, and how long that took.
func receive(ctx context.Context, s setting) error {
	b, err := newBench(s, batchSize)
	if err != nil {
		return err
	}
	if err := (consumers.Stack{Once: middleware.Once{Inbox: b.inbox}}).Apply(ctx, b.router); err != nil {
		return err
	}
	for _, topic := range []string{children, receipts} {
		b.router.AddConsumerHandler(topic, topic, subscriber(b.broker, roleDownstream, inFlight), note)
	}
	return b.run(ctx)
}

func note(msg *message.Message) error {
	number, err := numberOf(msg)
	if err != nil {
		return err
	}
	sent, err := strconv.ParseInt(string(msg.Payload), 10, 64)
	if err != nil {
		return err
	}
	tx, ok := oncemill.TxFromContext(msg.Context())
	if !ok {
		return oncemill.ErrNoTx
	}
	took := float64(time.Since(time.Unix(0, sent))) / float64(time.Millisecond)
	_, err = tx.ExecContext(msg.Context(), insertArrival, number, took)
	return err
}

// relay takes messages from the outbox to the broker, and keeps them for a while.
func relay(ctx context.Context, s setting) error {
	b, err := newBench(s, 0)
	if err != nil {
		return err
	}
	defer b.db.Close()
	defer b.broker.Close()
	r := &outbox.Relay{DB: b.db, Sink: &jetstream.Sink{Conn: b.broker.Conn}, ListenURL: s.Postgres, Keep: retention}
	return r.Run(ctx)
}
