package main

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/examples/internal/crew"
	"github.com/oncemill/oncemill/examples/internal/streams"
	"github.com/oncemill/oncemill/middleware"
)

// work is a worker: a router with a Stack, whose Guard claims each order before the
// handler makes its effect.
func work(ctx context.Context, s setting) error {
	db, err := crew.OpenDB(s.Postgres)
	if err != nil {
		return err
	}
	defer db.Close()
	broker, err := streams.Connect(s.NATS)
	if err != nil {
		return err
	}
	defer broker.Close()
	d := newDoom(s)
	with, err := s.kind().equip(s, d)
	if err != nil {
		return err
	}
	defer with.close()

	guard := with.guard
	guard.Inbox = &oncemill.Inbox{DB: db, DrainTimeout: 2 * time.Second}
	guard.Consumer = s.kind().consumer
	guard.Key = middleware.ByMetadata(orderID)
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NewSlogLogger(slog.Default()))
	if err != nil {
		return err
	}
	router.AddMiddleware(d.around)
	if err := (consumers.Stack{Guard: &guard}).Apply(ctx, router); err != nil {
		return err
	}
	router.AddHandler(guard.Consumer, orders, subscriber(broker, guard.Consumer), receipts, guard.Publisher(), d.within(with.handle))
	if guard.Ask == nil {
		return router.Run(ctx)
	}
	return runWith(ctx, router, guard.Resolver())
}

// runWith runs a resolver beside the router, as every worker does. It is in a hurry too.
func runWith(ctx context.Context, router *message.Router, resolver *oncemill.Resolver) error {
	resolver.MostBackoff, resolver.Poll, resolver.Timeout = time.Second, 200*time.Millisecond, 2*time.Second
	resolver.Concurrency = 8
	var resolving sync.WaitGroup
	defer resolving.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 1)
	resolving.Go(func() {
		failed <- resolver.Run(ctx)
		cancel() // the router ends too
	})
	if err := router.Run(ctx); err != nil {
		return err
	}
	cancel()
	return <-failed
}

// subscriber returns one that is in a hurry, unlike the default: what was not
// acknowledged is soon delivered again.
func subscriber(broker *streams.Broker, group string) message.Subscriber {
	return &jetstream.Subscriber{
		Conn:        broker.Conn,
		Group:       group,
		MaxInFlight: 16,
		AckWait:     time.Second,
		NakDelay:    func(uint64) time.Duration { return 100 * time.Millisecond },
	}
}
