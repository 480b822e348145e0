package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"
)

const (
	batchSize = 64
	batchTime = 100 * time.Millisecond
)

// A worker handles messages with Once. For each it writes an effect, and sends a child to
// two topics.
type worker struct {
	*bench
	publisher *outbox.Publisher
	mu        sync.Mutex
	draws     *rand.Rand
}

func workOnce(ctx context.Context, s setting) error {
	b, err := newBench(s)
	if err != nil {
		return err
	}
	defer b.close()
	inbox := b.inbox()
	if s.Role == roleBatch {
		inbox.Batch, inbox.BatchTime = batchSize, batchTime
	}
	router, err := b.router()
	if err != nil {
		return err
	}
	once := middleware.Once{Inbox: inbox}
	if err := (consumers.Stack{Once: once}).Apply(ctx, router); err != nil {
		return err
	}
	w := &worker{bench: b, publisher: &outbox.Publisher{Notify: b.db}, draws: s.draws()}
	inbox.Consumer(s.Role) // is known before its first message, and so purged from the start
	router.AddHandler(s.Role, s.Role, b.broker.subscriber(s.Role), childrenA, &outbox.Publisher{}, w.handle)
	return b.run(ctx, inbox.Run, router)
}

// The table has no unique constraint: what happens twice has to be seen. The indexes are
// for the checks.
const (
	createEffects = `
CREATE TABLE effects (consumer text, key text, child text, at timestamptz DEFAULT clock_timestamp());
CREATE INDEX ON effects (consumer, key); CREATE INDEX ON effects (child)`
	insertEffect = `INSERT INTO effects (consumer, key, child) VALUES ($1, $2, $3)`
)

func (w *worker) handle(msg *message.Message) ([]*message.Message, error) {
	ctx := msg.Context()
	tx, ok := oncemill.TxFromContext(ctx)
	if !ok {
		return nil, oncemill.ErrNoTx
	}
	// Each run has a child of its own, so that one of a run that was rolled back is seen.
	child := message.NewMessage(watermill.NewUUID(), msg.Payload)
	w.trace.note(msg.UUID, "runs, with the child %s", child.UUID)
	if _, err := tx.ExecContext(ctx, insertEffect, w.Role, msg.UUID, child.UUID); err != nil {
		return nil, err
	}
	other := child.Copy()
	other.SetContext(ctx)
	if err := w.publisher.Publish(childrenB, other); err != nil {
		return nil, err
	}
	return []*message.Message{child}, w.trouble(ctx)
}

// trouble is what goes wrong in a handler, after what it has written.
func (w *worker) trouble(ctx context.Context) error {
	w.mu.Lock()
	draw := w.draws.IntN(2000) // seldom, or batches would be small
	w.mu.Unlock()
	switch {
	case draw < 2:
		return errors.New("on purpose")
	case draw < 3:
		panic("on purpose")
	case draw < 6: // longer than a batch
		select {
		case <-time.After(3 * batchTime / 2):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
