package middleware_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	wm "github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"go.uber.org/goleak"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/delivery"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// What watermill-sql asks of a transaction.
var _ watermillsql.ContextExecutor = oncemill.Tx{}

type fixture struct {
	t     *testing.T
	db    *sql.DB
	inbox *oncemill.Inbox
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{t: t, db: testenv.DB(t)}
	f.inbox = &oncemill.Inbox{DB: f.db}
	_, err := f.db.Exec(`CREATE TABLE effects (name text)`)
	must(t, err)
	return f
}

// once is a middleware that needs no router.
func (f *fixture) once() middleware.Once {
	return middleware.Once{Inbox: f.inbox, Consumer: "test"}
}

func (f *fixture) want(query string, want int) {
	f.t.Helper()
	var got int
	must(f.t, f.db.QueryRow(query).Scan(&got))
	if got != want {
		f.t.Errorf("%s: got %d, want %d", query, got, want)
	}
}

func (f *fixture) wantEffects(want int) {
	f.t.Helper()
	f.want(`SELECT count(*) FROM effects`, want)
}

// effect is what a handler writes.
func effect(msg *message.Message) error {
	tx, ok := oncemill.TxFromContext(msg.Context())
	if !ok {
		return errors.New("no transaction")
	}
	_, err := tx.ExecContext(msg.Context(), `INSERT INTO effects VALUES ($1)`, msg.UUID)
	return err
}

func handler(msg *message.Message) ([]*message.Message, error) { return nil, effect(msg) }

func newMessage(t *testing.T, uuid string) *message.Message {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return message.NewMessageWithContext(ctx, uuid, []byte(`{"order": {"id": 7, "name": "x"}}`))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("got error %v, want %v", err, target)
	}
}

func TestOnceAcknowledgesADuplicateWithoutRunningIt(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	h := f.once().Middleware(handler)
	for range 3 {
		_, err := h(newMessage(t, "u"))
		must(t, err)
	}
	f.wantEffects(1)
}

func TestTheDuplicatorOutsideGivesOneEffect(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	_, err := wm.Duplicator(f.once().Middleware(handler))(newMessage(t, "u"))
	must(t, err)
	f.wantEffects(1)
}

func TestReturnedMessagesGoToTheOutboxInTheSameTransaction(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	failure := errors.New("no")
	var fail error = failure
	h := f.once().Middleware(func(msg *message.Message) ([]*message.Message, error) {
		out := message.NewMessage("child", []byte("payload"))
		out.Metadata.Set("tracestate", "own")
		return []*message.Message{out, {UUID: "bare"}}, errors.Join(effect(msg), fail)
	})
	run := func() ([]*message.Message, error) {
		msg := newMessage(t, "u")
		msg.Metadata.Set(wm.CorrelationIDMetadataKey, "c")
		msg.Metadata.Set("traceparent", "p")
		msg.Metadata.Set("tracestate", "s")
		msg.SetContext(publishTo(t, msg, "invoices"))
		return h(msg)
	}
	_, err := run()
	want(t, err, failure)
	f.want(`SELECT count(*) FROM oncemill.outbox`, 0)

	fail = nil
	for range 2 {
		produced, err := run()
		must(t, err)
		if len(produced) > 0 {
			t.Error("the router was given messages: it would publish them outside of the transaction")
		}
	}
	f.want(`SELECT count(*) FROM oncemill.outbox`, 2)
	f.want(`SELECT count(*) FROM oncemill.outbox WHERE topic = 'invoices' AND uuid = 'child' AND payload = 'payload'
		AND metadata = '{"correlation_id": "c", "traceparent": "p", "tracestate": "own"}'`, 1)
	f.want(`SELECT count(*) FROM oncemill.outbox WHERE uuid = 'bare'
		AND metadata = '{"correlation_id": "c", "traceparent": "p", "tracestate": "s"}'`, 1)
}

// publishTo returns the context that a router would give a message whose handler
// publishes to topic.
func publishTo(t *testing.T, msg *message.Message, topic string) context.Context {
	t.Helper()
	router, err := message.NewRouter(message.RouterConfig{}, nil)
	must(t, err)
	ctxs := make(chan context.Context, 1)
	sub := oneMessage{ch: make(chan *message.Message, 1)}
	sub.ch <- message.NewMessageWithContext(msg.Context(), msg.UUID, nil)
	router.AddHandler("handler", "in", sub, topic, new(outbox.Publisher), func(m *message.Message) ([]*message.Message, error) {
		ctxs <- m.Context()
		return nil, nil
	})
	ctx, cancel := context.WithCancel(msg.Context())
	done := make(chan error)
	go func() { done <- router.Run(ctx) }()
	got := <-ctxs
	close(sub.ch)
	cancel()
	must(t, <-done)
	return got
}

type oneMessage struct{ ch chan *message.Message }

func (s oneMessage) Subscribe(context.Context, string) (<-chan *message.Message, error) {
	return s.ch, nil
}
func (s oneMessage) Close() error { return nil }

func TestForgettingOnceFailsLoudly(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	err := (&outbox.Publisher{}).Publish("invoices", newMessage(t, "u"))
	want(t, err, outbox.ErrNoTx)
	f.want(`SELECT count(*) FROM oncemill.outbox`, 0)
}

func TestMisuseIsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	poisonQueue := func(h message.HandlerFunc) message.HandlerFunc {
		poison, err := wm.PoisonQueue(discard{}, "poison")
		must(t, err)
		return poison(h)
	}
	failing := func(msg *message.Message) ([]*message.Message, error) {
		return nil, errors.Join(effect(msg), errors.New("no"))
	}
	for name, test := range map[string]struct {
		h      message.HandlerFunc
		before func(*message.Message)
		want   error
	}{
		"acked before":    {h: handler, before: func(msg *message.Message) { msg.Ack() }, want: middleware.ErrAcked},
		"poisoned inside": {h: poisonQueue(failing), want: middleware.ErrPoisoned},
		"nested":          {h: f.once().Middleware(handler), want: oncemill.ErrNested},
		"nacked": {h: func(msg *message.Message) ([]*message.Message, error) {
			msg.Nack()
			return nil, effect(msg)
		}, want: middleware.ErrNacked},
		"no topic": {h: func(msg *message.Message) ([]*message.Message, error) {
			return []*message.Message{newMessage(t, "")}, effect(msg)
		}, want: middleware.ErrNoTopic},
		"aborted": {h: func(msg *message.Message) ([]*message.Message, error) {
			tx, _ := oncemill.TxFromContext(msg.Context())
			_, _ = tx.Exec("SELECT 1/0")
			return nil, nil
		}, want: oncemill.ErrTxAborted},
	} {
		msg := newMessage(t, name)
		if test.before != nil {
			test.before(msg)
		}
		_, err := f.once().Middleware(test.h)(msg)
		if !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", name, err, test.want)
		}
	}
	f.wantEffects(0)
	_, err := middleware.Once{Inbox: f.inbox}.Middleware(handler)(newMessage(t, "u"))
	want(t, err, middleware.ErrNoConsumer)
}

type discard struct{}

func (discard) Publish(string, ...*message.Message) error { return nil }
func (discard) Close() error                              { return nil }

func TestAPoisonedMessageThatIsReplayedRuns(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	msg := newMessage(t, "u")
	msg.Metadata.Set(wm.ReasonForPoisonedKey, "of old")
	_, err := f.once().Middleware(handler)(msg)
	must(t, err)
	f.wantEffects(1)
}

func TestTheHandlersMessageIsACopy(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	msg := newMessage(t, "u")
	ctx := msg.Context()
	before := msg.Copy()
	before.Payload = append(message.Payload(nil), msg.Payload...)
	for _, result := range []error{errors.New("no"), nil} {
		_, err := f.once().Middleware(func(own *message.Message) ([]*message.Message, error) {
			if !own.Equals(before) {
				t.Errorf("the handler got %v %s", own.Metadata, own.Payload)
			}
			own.Metadata.Set("changed", "yes")
			own.Payload[0] = 'X'
			own.SetContext(context.Background())
			own.Ack()
			return nil, result
		})(msg)
		want(t, err, result)
	}
	if !msg.Equals(before) || msg.Context() != ctx {
		t.Errorf("the message was changed: %v %s", msg.Metadata, msg.Payload)
	}
	select {
	case <-msg.Acked():
		t.Error("the message was acknowledged before its commit")
	default:
	}
}

func TestAPanicRollsBackAndGoesOn(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	h := wm.Recoverer(f.once().Middleware(func(msg *message.Message) ([]*message.Message, error) {
		must(t, effect(msg))
		panic("no")
	}))
	_, err := h(newMessage(t, "u"))
	var panicked wm.RecoveredPanicError
	if !errors.As(err, &panicked) {
		t.Errorf("got %v", err)
	}
	f.wantEffects(0)
}

func TestKeys(t *testing.T) {
	t.Parallel()
	withMetadata := newMessage(t, "u")
	withMetadata.Metadata.Set("id", "m")
	withPosition := newMessage(t, "")
	withPosition.SetContext(delivery.With(withPosition.Context(), delivery.Info{Position: "p"}))
	payload := func(text string) *message.Message { return message.NewMessage("u", []byte(text)) }
	for _, test := range []struct {
		key  middleware.KeyFunc
		msg  *message.Message
		want string // "": no key
	}{
		{middleware.ByUUID, newMessage(t, "u"), "u"},
		{middleware.ByUUID, newMessage(t, ""), ""},
		{middleware.ByMetadata("id"), withMetadata, "m"},
		{middleware.ByMetadata("id"), newMessage(t, "u"), ""},
		{middleware.ByJSON("order", "id"), newMessage(t, "u"), "7"},
		{middleware.ByJSON("order", "name"), newMessage(t, "u"), "x"},
		{middleware.ByJSON("order"), newMessage(t, "u"), ""},
		{middleware.ByJSON("order", "absent"), newMessage(t, "u"), ""},
		{middleware.ByJSON("order", "id", "deeper"), newMessage(t, "u"), ""},
		{middleware.ByJSON("id"), payload(`{"id": 12345678901234567890}`), "12345678901234567890"},
		{middleware.ByJSON("id"), payload(`{"id": ""}`), ""},
		{middleware.ByJSON("id"), payload(`{"id": null}`), ""},
		{middleware.ByJSON("id"), payload(`{"id": "x"} {"id": "y"}`), ""},
		{middleware.ByJSON("id"), payload(`{"id": "x"`), ""},
		{middleware.ByJSON("id"), payload(``), ""},
		{middleware.ByJSON("id"), payload("{\"id\": \"\xff\"}"), ""},
		{middleware.ByJSON("id"), payload(`{"id": "\ud800"}`), ""},
		{middleware.ByJSON("id"), payload("{\"id\": \"\uFFFD\"}"), "\uFFFD"},
		{middleware.ByPosition, withPosition, "p"},
		{middleware.ByPosition, newMessage(t, "u"), ""},
	} {
		got, err := test.key(test.msg)
		if got != test.want || (test.want == "") != errors.Is(err, oncemill.ErrNoKey) {
			t.Errorf("%s: got %q, %v, want %q", test.msg.Payload, got, err, test.want)
		}
	}
}

func TestAMessageWithoutAKeyIsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for name, key := range map[string]middleware.KeyFunc{
		"default":   nil,
		"empty":     func(*message.Message) (string, error) { return "", nil },
		"any error": func(*message.Message) (string, error) { return "", errors.New("no") },
		"reserved":  func(*message.Message) (string, error) { return "oncemill:dead:position:1", nil },
	} {
		once := f.once()
		once.Key = key
		_, err := once.Middleware(handler)(newMessage(t, ""))
		if !errors.Is(err, oncemill.ErrNoKey) || oncemill.IsHandlerError(err) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	f.wantEffects(0)
}

func TestTheSameKeyWithAnotherPayload(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	once := f.once()
	once.Fingerprint = middleware.PayloadFingerprint
	h := once.Middleware(handler)
	for range 2 {
		_, err := h(newMessage(t, "u"))
		must(t, err)
	}
	other := newMessage(t, "u")
	other.Payload = []byte("other")
	_, err := h(other)
	want(t, err, oncemill.ErrKeyReused)
	f.wantEffects(1)
}

func TestAMessageOlderThanThePurgeIsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	_, err := f.db.Exec(`INSERT INTO oncemill.watermarks VALUES ('test', now() - interval '1 hour')`)
	must(t, err)
	twoHoursAgo := time.Now().Add(-2 * time.Hour)
	byHeader, byBroker, fresh := newMessage(t, "header"), newMessage(t, "broker"), newMessage(t, "fresh")
	byHeader.Metadata.Set(outbox.OriginMetadata, twoHoursAgo.UTC().Format(time.RFC3339Nano))
	byBroker.SetContext(delivery.With(byBroker.Context(), delivery.Info{Time: twoHoursAgo}))
	byBroker.Metadata.Set(outbox.OriginMetadata, "nonsense")
	fresh.Metadata.Set(outbox.OriginMetadata, time.Now().UTC().Format(time.RFC3339Nano))
	h := f.once().Middleware(handler)
	for _, msg := range []*message.Message{byHeader, byBroker} {
		_, err := h(msg)
		want(t, err, oncemill.ErrTooOld)
	}
	_, err = h(fresh)
	must(t, err)
	f.wantEffects(1)
}

func TestWatermillSQLPublisherInTheTransaction(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	schema := watermillsql.DefaultPostgreSQLSchema{}
	initial, err := watermillsql.NewPublisher(f.db, watermillsql.PublisherConfig{SchemaAdapter: schema, AutoInitializeSchema: true}, watermill.NopLogger{})
	must(t, err)
	must(t, initial.Publish("events", message.NewMessage("first", []byte(`{}`))))
	must(t, initial.Close())
	failure := errors.New("no")
	for i, result := range []error{failure, nil} {
		_, err := f.once().Middleware(func(msg *message.Message) ([]*message.Message, error) {
			tx, _ := oncemill.TxFromContext(msg.Context())
			publisher, err := watermillsql.NewPublisher(tx, watermillsql.PublisherConfig{SchemaAdapter: schema}, watermill.NopLogger{})
			must(t, err)
			return nil, errors.Join(publisher.Publish("events", message.NewMessage("second", []byte(`{}`))), result)
		})(newMessage(t, fmt.Sprint(i)))
		want(t, err, result)
	}
	f.want(`SELECT count(*) FROM watermill_events`, 2)
}

func TestOnceWithoutAnInboxPanicsAtWiring(t *testing.T) {
	t.Parallel()
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	middleware.Once{}.Middleware(handler)
}
