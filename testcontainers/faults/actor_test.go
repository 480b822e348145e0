package faults_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	stockjs "github.com/ThreeDotsLabs/watermill-nats/v2/pkg/jetstream"
	stocknats "github.com/ThreeDotsLabs/watermill-nats/v2/pkg/nats"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"
)

// work is the role of a worker: a router as a user would set it up.
func (a *performer) work(ctx context.Context) error {
	inbox := &oncemill.Inbox{
		DB:           a.db,
		LockWait:     a.LockWait,
		IdleTimeout:  a.IdleTimeout,
		DrainTimeout: a.DrainTimeout,
		Observer: &oncemill.Observer{
			Committed: func(_ context.Context, _, key string, _ time.Duration) {
				a.Say("committed %s", key)
				a.opportunity(dieBeforeAck, key)
			},
			Duplicate: func(_ context.Context, _, key string) { a.Say("duplicate %s", key) },
			Failed:    func(_ context.Context, err *oncemill.Error) { a.Say("failed %s %s %q", err.Op, err.Key, err.Err) },
		},
	}
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NewSlogLogger(slog.Default()))
	if err != nil {
		return err
	}
	once := middleware.Once{Inbox: inbox}
	if a.Subscriber == "" {
		err = consumers.Stack{Once: once, MaxErrors: a.MaxErrors}.Apply(ctx, router)
	} else {
		router.AddMiddleware(once.Middleware)
	}
	if err != nil {
		return err
	}
	subscriber, err := a.subscriber()
	if err != nil {
		return err
	}
	router.AddHandler(a.Handler, a.Topic, subscriber, a.Receipts, &outbox.Publisher{}, a.handle)
	go func() {
		<-router.Running()
		a.Say("running")
	}()
	return router.Run(ctx)
}

func (a *performer) subscriber() (message.Subscriber, error) {
	switch a.Subscriber {
	case "stock jetstream":
		return stockjs.NewSubscriber(stockjs.SubscriberConfig{
			Conn:                a.nc,
			ResourceInitializer: stockjs.ExistingConsumer(nil, a.Handler),
		})
	case "stock nats":
		return stocknats.NewSubscriberWithNatsConn(a.nc, stocknats.SubscriberSubscriptionConfig{
			QueueGroupPrefix: a.Handler,
			SubscribersCount: a.MaxInFlight,
			JetStream: stocknats.JetStreamConfig{
				DurablePrefix:    a.Handler,
				SubscribeOptions: []nats.SubOpt{nats.AckWait(ackWait), nats.MaxAckPending(a.MaxInFlight), nats.ManualAck()},
			},
		}, watermill.NewSlogLogger(slog.Default()))
	}
	return &jetstream.Subscriber{
		Conn:        a.nc,
		Group:       a.Handler,
		MaxInFlight: a.MaxInFlight,
		AckWait:     ackWait,
	}, nil
}

var errWanted = errors.New("the test wants it to fail")

// handle writes one effect, and returns one message about it.
func (a *performer) handle(msg *message.Message) ([]*message.Message, error) {
	tx, ok := oncemill.TxFromContext(msg.Context())
	if !ok {
		return nil, errors.New("no transaction in the context")
	}
	_, err := tx.ExecContext(msg.Context(), `INSERT INTO effects (handler, key, number, worker) VALUES ($1, $2, $3::integer, $4)`,
		a.Handler, msg.UUID, string(msg.Payload), a.Name)
	if err != nil {
		return nil, err
	}
	a.Say("handling %s", msg.UUID)
	a.opportunity(dieInHandler, msg.UUID)
	a.opportunity(freezeInHandler, msg.UUID)
	if n := a.runs.Add(1); a.FailEvery > 0 && n%int64(a.FailEvery) == 0 {
		return nil, errWanted
	}
	if a.Receipts == "" {
		return nil, nil
	}
	return []*message.Message{message.NewMessage(watermill.NewUUID(), msg.Payload)}, nil
}

// relay is the role of a relay.
func (a *performer) relay(ctx context.Context) error {
	relay := &outbox.Relay{
		DB:             a.db,
		Sink:           faultySink{a, &jetstream.Sink{Conn: a.nc}},
		Batch:          a.Batch,
		PollInterval:   100 * time.Millisecond,
		PublishTimeout: a.PublishTimeout,
	}
	a.Say("running")
	return relay.Run(ctx)
}

// A faultySink publishes, and gives the actor's fault its opportunities.
type faultySink struct {
	a     *performer
	inner outbox.Sink
}

func (s faultySink) PublishBatch(ctx context.Context, rows []outbox.Row) []error {
	half := len(rows) / 2
	errs := make([]error, 0, len(rows))
	if s.a.Fault == freezeWithinAPublish {
		errs = append(errs, s.inner.PublishBatch(ctx, rows[:half])...)
		s.a.opportunity(freezeWithinAPublish, rows[0].UUID)
		rows = rows[half:]
	}
	errs = append(errs, s.inner.PublishBatch(ctx, rows)...)
	if err := errors.Join(errs...); err != nil {
		s.a.Say("unpublished %q", fmt.Sprint(err))
		return errs
	}
	s.a.Say("published %d", len(errs))
	s.a.opportunity(dieAfterPublishing, rows[0].UUID)
	return errs
}
