package movein_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	wm "github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"
)

// withDeduplicator is the router as it was.
func withDeduplicator(router *message.Router) {
	deduplicator := &wm.Deduplicator{KeyFactory: wm.NewMessageHasherFromMetadataField("payment-id")}
	router.AddMiddleware(deduplicator.Middleware)
}

// withOnce is the router as it is.
func withOnce(ctx context.Context, router *message.Router, inbox *oncemill.Inbox) error {
	once := middleware.Once{Inbox: inbox, Key: middleware.ByMetadata("payment-id")}
	return consumers.Stack{Once: once}.Apply(ctx, router)
}

// byPayload takes messages with the same payload for one message.
func byPayload(msg *message.Message) (string, error) {
	sum := sha256.Sum256(msg.Payload)
	return hex.EncodeToString(sum[:]), nil
}

// pay is the handler, whose effect is in the transaction now.
func pay(msg *message.Message) ([]*message.Message, error) {
	tx, ok := oncemill.TxFromContext(msg.Context())
	if !ok {
		return nil, oncemill.ErrNoTx
	}
	if _, err := tx.ExecContext(msg.Context(), `INSERT INTO payments (id) VALUES ($1)`, string(msg.Payload)); err != nil {
		return nil, err
	}
	return []*message.Message{message.NewMessage("receipt-of-"+msg.UUID, msg.Payload)}, nil
}

var errOnPurpose = errors.New("on purpose")

// failing has a handler fail the first time that it gets a message, and the ack of the
// message's next delivery get lost.
func failing() (inside, outside message.HandlerMiddleware) {
	var mu sync.Mutex
	runs, acks := make(map[string]int), make(map[string]int)
	first := func(of map[string]int, uuid string) bool {
		mu.Lock()
		defer mu.Unlock()
		of[uuid]++
		return of[uuid] == 1
	}
	inside = func(h message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			if first(runs, msg.UUID) {
				return nil, errOnPurpose
			}
			return h(msg)
		}
	}
	outside = func(h message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			msgs, err := h(msg)
			if err == nil && first(acks, msg.UUID) {
				return nil, errOnPurpose
			}
			return msgs, err
		}
	}
	return inside, outside
}

// work runs a router on the site's orders until all of them are acknowledged.
func (s *site) work(apply func(*message.Router), handler message.HandlerFunc) {
	s.t.Helper()
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	must(s.t, err)
	apply(router)
	router.AddHandler("payments", "orders", &jetstream.Subscriber{Conn: s.nc, Group: "payments", NakDelay: soon}, "receipts", &outbox.Publisher{DB: s.db}, handler)
	ended := make(chan error, 1)
	go func() { ended <- router.Run(context.Background()) }()
	s.settled("payments~orders")
	must(s.t, router.Close())
	must(s.t, <-ended)
}

// soon is a NakDelay.
func soon(attempt uint64) time.Duration {
	return min(time.Duration(attempt)*20*time.Millisecond, time.Second/2)
}

// settled waits until a consumer has acknowledged all messages.
func (s *site) settled(consumer string) {
	s.t.Helper()
	poll(s.t, "all messages are acknowledged", func() bool {
		c, err := s.js.Consumer(within(s.t), "EVENTS", consumer)
		if err != nil {
			return false // not there yet
		}
		info := c.CachedInfo()
		return info.NumPending == 0 && info.NumAckPending == 0 && info.Delivered.Consumer > 0
	})
}

// send publishes payments, of which each has an id of its own.
func (s *site) send(n int) {
	s.t.Helper()
	publisher := &jetstream.Publisher{Conn: s.nc}
	for i := range n {
		msg := message.NewMessage(fmt.Sprint("uuid-", i), fmt.Appendf(nil, "payment-%d", i))
		msg.Metadata.Set("payment-id", fmt.Sprint("payment-", i))
		must(s.t, publisher.Publish("orders", msg))
	}
}

const payments = 30

func newPayments(t *testing.T) *site {
	s := newSite(t, "orders")
	s.exec(`CREATE TABLE payments (id text)`)
	s.send(payments)
	return s
}

// What the guide says that a Deduplicator does: a handler that fails once is never run
// again, and the message is acknowledged.
func TestADeduplicatorLosesMessagesWhoseHandlerFails(t *testing.T) {
	t.Parallel()
	s := newPayments(t)
	inside, outside := failing()
	s.work(func(router *message.Router) {
		router.AddMiddleware(outside)
		withDeduplicator(router)
		router.AddMiddleware(inside)
	}, func(msg *message.Message) ([]*message.Message, error) {
		_, err := s.db.ExecContext(msg.Context(), `INSERT INTO payments (id) VALUES ($1)`, string(msg.Payload))
		return nil, err
	})
	if n := s.count(`SELECT count(*) FROM payments`); n != 0 {
		t.Errorf("%d of %d payments are there: the guide is wrong about the Deduplicator", n, payments)
	}
}

func TestFromADeduplicatorEveryMessageIsHandledOnce(t *testing.T) {
	t.Parallel()
	for name, key := range map[string]middleware.KeyFunc{"metadata": nil, "UUID": middleware.ByUUID, "payload": byPayload} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newPayments(t)
			s.send(payments) // every message is sent twice too
			inbox := &oncemill.Inbox{DB: s.db}
			inside, outside := failing()
			s.work(func(router *message.Router) {
				router.AddMiddleware(outside)
				if key == nil {
					must(t, withOnce(within(t), router, inbox))
				} else {
					must(t, consumers.Stack{Once: middleware.Once{Inbox: inbox, Key: key}}.Apply(within(t), router))
				}
				router.AddMiddleware(inside)
			}, pay)
			var want []string
			for i := range payments {
				want = append(want, fmt.Sprint("payment-", i))
			}
			once(t, "payments", s.column(`SELECT id FROM payments`), want)
			once(t, "receipts", s.column(`SELECT convert_from(payload, 'UTF8') FROM oncemill.outbox WHERE topic = 'receipts'`), want)
		})
	}
}
