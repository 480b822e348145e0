package main

import (
	"context"
	"database/sql"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/examples/internal/crew"
)

// A bench is what every worker works at.
type bench struct {
	setting
	db     *sql.DB
	broker broker
	trace  *trace
}

func newBench(s setting) (b *bench, err error) {
	b = &bench{setting: s}
	if b.trace, err = openTrace(s); err != nil {
		return nil, err
	}
	if b.db, err = crew.OpenDB(s.Postgres); err != nil {
		return nil, err
	}
	b.broker, err = s.connect()
	return b, err
}

func (b *bench) close() {
	b.broker.close()
	b.db.Close()
	b.trace.close()
}

// inbox is in a hurry, unlike the default: whoever is frozen or cut off soon holds nothing
// any more.
func (b *bench) inbox() *oncemill.Inbox {
	return &oncemill.Inbox{
		DB: b.db, Retention: retention, Lease: lease,
		LockWait: time.Second, IdleTimeout: idleTimeout, DrainTimeout: 2 * time.Second,
	}
}

const (
	idleTimeout = 3 * time.Second
	lease       = 3 * time.Second
	retention   = 10 * time.Minute // the least; see old.go for what is older
)

// router returns one that notes what becomes of each delivery.
func (b *bench) router() (*message.Router, error) {
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: 6 * time.Second}, watermill.NewSlogLogger(slog.Default()))
	if err == nil {
		router.AddMiddleware(b.note)
	}
	return router, err
}

func (b *bench) note(h message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		b.trace.note(msg.UUID, "delivered from %s", message.SubscribeTopicFromCtx(msg.Context()))
		out, err := h(msg)
		if err != nil {
			b.trace.note(msg.UUID, "nack: %.300v", err)
		} else {
			b.trace.note(msg.UUID, "ack")
		}
		return out, err
	}
}

// run runs routers and what goes beside them until ctx ends, and says when they run.
func (b *bench) run(ctx context.Context, beside func(context.Context) error, routers ...*message.Router) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, len(routers)+1)
	go func() { ended <- beside(ctx) }()
	for _, router := range routers {
		go func() { ended <- router.Run(ctx) }()
	}
	go func() {
		for _, router := range routers {
			select {
			case <-router.Running():
			case <-ctx.Done():
				return
			}
		}
		crew.Say(running)
	}()
	var first error
	for range len(routers) + 1 {
		if err := <-ended; err != nil && first == nil {
			first = err
		}
		cancel()
	}
	return first
}
