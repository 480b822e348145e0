package main

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wmnats "github.com/ThreeDotsLabs/watermill-nats/v2/pkg/jetstream"
	"github.com/ThreeDotsLabs/watermill/message"
	_ "github.com/lib/pq"
	"github.com/nats-io/nats.go"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"
)

// What a handler does: an INSERT into a table of some size, or an UPDATE in one of a few
// rows.
const (
	insertSQL = `INSERT INTO effects (key, payload) VALUES ($1, $2)`
	updateSQL = `UPDATE accounts SET balance = balance + 1 WHERE id = $1`
)

// An effect is one of these, and the same prepared.
type effect struct {
	query string
	stmt  *sql.Stmt
	hot   bool
}

func (e effect) args(msg *message.Message) ([]any, error) {
	if !e.hot {
		return []any{msg.UUID, string(msg.Payload)}, nil
	}
	account, err := accountOf(msg.UUID)
	return []any{account}, err
}

// spare is how many connections a pool has beside one for each message in flight, or with
// batches for each that runs alone.
const spare = 4

func (s setting) connections() int {
	if s.Batch > 1 {
		return 4 * spare
	}
	return max(s.InFlight, 1) + spare
}

// A worker is a process that handles messages.
type worker struct {
	setting setting
	db      *sql.DB
	nc      *nats.Conn
	meter   *meter
	wait    func()
	router  *message.Router
	effect  effect
}

func newWorker(ctx context.Context, s setting) (w *worker, err error) {
	w = &worker{setting: s}
	if w.db, err = openPool(ctx, s.Postgres, s.connections()); err != nil {
		return nil, err
	}
	if w.nc, err = nats.Connect(s.NATS, nats.MaxReconnects(-1)); err != nil {
		return nil, err
	}
	query := insertSQL
	if s.Hot {
		query = updateSQL
	}
	w.effect.hot, w.effect.query = s.Hot, query
	if w.effect.stmt, err = w.db.PrepareContext(ctx, query); err != nil {
		return nil, err
	}
	if w.router, err = message.NewRouter(message.RouterConfig{}, watermill.NopLogger{}); err != nil {
		return nil, err
	}
	w.meter, w.wait = startMeter(ctx, s)
	w.router.AddMiddleware(w.meter.middleware)
	return w, nil
}

// run handles messages until ctx ends.
func (w *worker) run(ctx context.Context) error {
	defer w.db.Close()
	defer w.nc.Close()
	defer w.wait()
	return w.router.Run(ctx)
}

// openPool opens a pool that has as many connections as it will ever need. They are
// established here, and not in the time that is measured.
func openPool(ctx context.Context, address string, connections int) (*sql.DB, error) {
	db, err := sql.Open("postgres", address)
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	for range connections {
		conn, err := db.Conn(ctx)
		if err != nil {
			return nil, err
		}
		defer conn.Close()
	}
	return db, nil
}

func (w *worker) subscriber() *jetstream.Subscriber {
	return &jetstream.Subscriber{Conn: w.nc, Group: consumer, MaxInFlight: w.setting.InFlight}
}

// consumeOnce is Oncemill: the claim, the effect and a message in the outbox are one
// transaction.
func consumeOnce(ctx context.Context, s setting) error {
	w, err := newWorker(ctx, s)
	if err != nil {
		return err
	}
	inbox := &oncemill.Inbox{DB: w.db, Batch: s.Batch}
	w.router.AddMiddleware(middleware.Once{Inbox: inbox}.Middleware)
	w.router.AddHandler(consumer, s.Topic, w.subscriber(), s.Out, &outbox.Publisher{}, w.handle)
	if s.Purge {
		w.meter.busy.Store(true)
		go w.purge(ctx, inbox)
	}
	return w.run(ctx)
}

func (w *worker) handle(msg *message.Message) ([]*message.Message, error) {
	ctx := msg.Context()
	tx, ok := oncemill.TxFromContext(ctx)
	if !ok {
		return nil, fmt.Errorf("message %s has no transaction", msg.UUID)
	}
	args, err := w.effect.args(msg)
	if err != nil {
		return nil, err
	}
	if _, err := tx.ExecContext(ctx, w.effect.query, args...); err != nil {
		return nil, err
	}
	return []*message.Message{message.NewMessage(msg.UUID, msg.Payload)}, nil
}

// purge deletes old claims as soon as the work begins, and is part of it.
func (w *worker) purge(ctx context.Context, inbox *oncemill.Inbox) {
	inbox.Consumer(consumer)
	for w.meter.begun.Load() == 0 && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	for ctx.Err() == nil {
		deleted, err := inbox.Purge(ctx)
		if err != nil {
			slog.Error("purge", "error", err)
			return // the conductor sees that it does not come to an end
		}
		if deleted == 0 {
			break
		}
	}
	w.meter.ends(0)
	w.meter.busy.Store(false)
}

// consumePlain is what people do without: a transaction of the handler's own, and nothing
// that tells whether a message was handled before.
func consumePlain(ctx context.Context, s setting) error {
	w, err := newWorker(ctx, s)
	if err != nil {
		return err
	}
	w.router.AddConsumerHandler(consumer, s.Topic, w.subscriber(), w.handlePlain)
	return w.run(ctx)
}

func (w *worker) handlePlain(msg *message.Message) error {
	ctx := msg.Context()
	args, err := w.effect.args(msg)
	if err != nil {
		return err
	}
	tx, err := w.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.StmtContext(ctx, w.effect.stmt).ExecContext(ctx, args...); err != nil {
		return err
	}
	return tx.Commit()
}

// consumeStock is the same with the subscriber of watermill-nats, which has one message in
// flight.
func consumeStock(ctx context.Context, s setting) error {
	w, err := newWorker(ctx, s)
	if err != nil {
		return err
	}
	subscriber, err := wmnats.NewSubscriber(wmnats.SubscriberConfig{URL: s.NATS, Logger: watermill.NopLogger{}, AckAsync: s.AckAsync})
	if err != nil {
		return err
	}
	w.router.AddConsumerHandler(consumer, s.Topic, subscriber, w.handlePlain)
	return w.run(ctx)
}
