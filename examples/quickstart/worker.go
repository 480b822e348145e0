package main

import (
	"context"
	"database/sql"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	wm "github.com/ThreeDotsLabs/watermill/message/router/middleware"
	_ "github.com/lib/pq"
	"github.com/nats-io/nats.go"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/middleware"
)

// A worker is what billing and shipping are made of.
type worker struct {
	db      *sql.DB
	nats    *nats.Conn
	router  *message.Router
	trouble *trouble
}

func newWorker(ctx context.Context, s setting) (w *worker, err error) {
	w = &worker{trouble: newTrouble(s)}
	if w.db, err = openDB(s); err != nil {
		return nil, err
	}
	w.nats, err = nats.Connect(s.NATS, nats.MaxReconnects(-1), nats.SetCustomDialer(w.trouble))
	if err != nil {
		return nil, err
	}
	w.router, err = newRouter(ctx, s.Oncemill, w.db)
	return w, err
}

func (w *worker) close() {
	w.nats.Close()
	w.db.Close()
}

func openDB(s setting) (*sql.DB, error) {
	db, err := sql.Open("postgres", s.Postgres)
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(16)
	db.SetMaxIdleConns(16)
	return db, nil
}

// newRouter returns a router, with Oncemill's middlewares or with Watermill's
// own. Beside the handlers themselves this is all in which the two runs differ.
func newRouter(ctx context.Context, withOncemill bool, db *sql.DB) (*message.Router, error) {
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NewSlogLogger(slog.Default()))
	if err != nil {
		return nil, err
	}
	if !withOncemill {
		router.AddMiddleware(wm.Recoverer)
		return router, nil
	}
	stack := consumers.Stack{Once: middleware.Once{Inbox: &oncemill.Inbox{DB: db}}}
	return router, stack.Apply(ctx, router)
}

// subscriber returns the same one in both runs. Unlike the default it is in a
// hurry: what was not acknowledged is soon delivered again.
func (w *worker) subscriber(group string) *jetstream.Subscriber {
	return &jetstream.Subscriber{
		Conn:     w.nats,
		Group:    group,
		AckWait:  time.Second,
		NakDelay: func(uint64) time.Duration { return 100 * time.Millisecond },
	}
}
