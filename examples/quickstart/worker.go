package main

import (
	"context"
	"database/sql"
	"log/slog"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	wm "github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/examples/internal/crew"
	"github.com/oncemill/oncemill/middleware"
)

// A worker is what billing and shipping are made of.
type worker struct {
	db      *sql.DB
	notes   *sql.DB // of deliveries
	broker  broker
	router  *message.Router
	trouble *trouble
}

func newWorker(ctx context.Context, s setting) (w *worker, err error) {
	w = &worker{trouble: newTrouble(s)}
	if w.db, err = crew.OpenDB(s.Postgres); err != nil {
		return nil, err
	}
	if w.notes, err = openNotes(s); err != nil {
		return nil, err
	}
	if w.broker, err = s.connect(w.trouble); err != nil {
		return nil, err
	}
	return w, w.makeRouter(ctx, s)
}

func (w *worker) close() {
	w.broker.close()
	w.notes.Close()
	w.db.Close()
}

// makeRouter makes a router, with Oncemill's middlewares or with Watermill's own.
// Beside the handlers themselves this is all in which the two runs differ.
func (w *worker) makeRouter(ctx context.Context, s setting) (err error) {
	w.router, err = message.NewRouter(message.RouterConfig{}, watermill.NewSlogLogger(slog.Default()))
	if err != nil {
		return err
	}
	if !s.brand().counts {
		w.router.AddMiddleware(w.note)
	}
	if !s.Oncemill {
		w.router.AddMiddleware(wm.Recoverer)
		return nil
	}
	stack := consumers.Stack{Once: middleware.Once{Inbox: &oncemill.Inbox{DB: w.db, Batch: 32}}}
	return stack.Apply(ctx, w.router)
}
