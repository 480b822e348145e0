package consumers_test

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/cqrs"
	"github.com/ThreeDotsLabs/watermill/message"
	wm "github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"
)

// system is a database, a broker, a router with a Stack and a relay.
type system struct {
	t      *testing.T
	db     *sql.DB
	url    string
	conn   *nats.Conn
	js     natsjs.JetStream
	prefix string // of this test's subjects, and the name of its stream
	router *message.Router
	stack  consumers.Stack
}

func newSystem(t *testing.T) *system {
	t.Helper()
	s := &system{t: t, url: testenv.PostgresURL(t), prefix: "t" + strings.ToLower(rand.Text()[:10])}
	s.db = testenv.Open(t, s.url)
	// More connections than this help nobody on a small machine, and without idle
	// ones the pool would open one for nearly every message.
	s.db.SetMaxOpenConns(16)
	s.db.SetMaxIdleConns(16)
	_, err := s.db.Exec(`CREATE TABLE effects (name text)`)
	must(t, err)
	s.conn, err = nats.Connect(testenv.NATSURL(t))
	must(t, err)
	t.Cleanup(s.conn.Close)
	s.js, err = natsjs.New(s.conn)
	must(t, err)
	_, err = s.js.CreateStream(within(t), natsjs.StreamConfig{Name: s.prefix, Subjects: []string{s.prefix + ".>"}, Storage: natsjs.MemoryStorage})
	must(t, err)
	t.Cleanup(func() { must(t, s.js.DeleteStream(context.Background(), s.prefix)) })
	s.router, err = message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	must(t, err)
	s.stack = consumers.Stack{
		Once:            middleware.Once{Inbox: &oncemill.Inbox{DB: s.db}},
		DeadLetterTopic: s.topic("dead"),
	}
	return s
}

func (s *system) topic(name string) string { return s.prefix + "." + name }

func (s *system) subscriber(group string) *jetstream.Subscriber {
	return &jetstream.Subscriber{Conn: s.conn, Group: group, NakDelay: func(uint64) time.Duration { return 10 * time.Millisecond }}
}

// run applies the Stack and runs the router and a relay until the test ends.
func (s *system) run() {
	s.t.Helper()
	must(s.t, s.stack.Apply(within(s.t), s.router))
	s.start()
}

func (s *system) start() {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	relay := &outbox.Relay{DB: s.db, Sink: &jetstream.Sink{Conn: s.conn}, ListenURL: s.url}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.router.Run(ctx); err != nil {
			s.t.Error(err)
		}
	})
	wg.Go(func() {
		if err := relay.Run(ctx); err != nil {
			s.t.Error(err)
		}
	})
	s.t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	<-s.router.Running()
}

// publish sends messages straight to the broker, as a foreign producer does.
func (s *system) publish(topic string, n int) {
	s.t.Helper()
	publisher := &jetstream.Publisher{Conn: s.conn}
	for i := range n {
		must(s.t, publisher.Publish(topic, message.NewMessage(fmt.Sprintf("%s-%d", topic, i), []byte(`{}`))))
	}
}

// settled waits until the consumer of a group has nothing left to deliver, and
// nothing that was delivered but not acknowledged.
func (s *system) settled(want int) {
	s.t.Helper()
	ctx := within(s.t)
	for ctx.Err() == nil {
		idle, consumers := true, 0
		lister := s.stream().ListConsumers(ctx)
		for info := range lister.Info() {
			consumers++
			idle = idle && info.NumPending == 0 && info.NumAckPending == 0
		}
		must(s.t, lister.Err())
		if idle && consumers == want && count(s.t, s.db, `SELECT count(*) FROM oncemill.outbox`) == 0 {
			return
		}
		time.Sleep(5 * time.Millisecond) // the server cannot tell us: ask again
	}
	s.t.Fatal("messages are stuck")
}

func (s *system) stream() natsjs.Stream {
	s.t.Helper()
	stream, err := s.js.Stream(within(s.t), s.prefix)
	must(s.t, err)
	return stream
}

// arrived returns how many messages the stream has under a subject.
func (s *system) arrived(topic string) int {
	s.t.Helper()
	info, err := s.stream().Info(within(s.t), natsjs.WithSubjectFilter(topic))
	must(s.t, err)
	return int(info.State.Subjects[topic])
}

func (s *system) want(query string, want int) {
	s.t.Helper()
	if got := count(s.t, s.db, query); got != want {
		s.t.Errorf("%s: got %d, want %d", query, got, want)
	}
}

func TestTwoHandlersOnOneTopicEachHandleEveryMessage(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.publish(s.topic("orders"), 1000)
	for _, name := range []string{"billing", "shipping"} {
		s.router.AddConsumerHandler(name, s.topic("orders"), s.subscriber(name), func(msg *message.Message) error {
			tx, _ := oncemill.TxFromContext(msg.Context())
			_, err := tx.ExecContext(msg.Context(), `INSERT INTO effects VALUES ($1)`, name)
			return err
		})
	}
	s.run()
	s.settled(2)
	s.want(`SELECT count(*) FROM effects WHERE name = 'billing'`, 1000)
	s.want(`SELECT count(*) FROM effects WHERE name = 'shipping'`, 1000)
	s.want(`SELECT count(*) FROM oncemill.claims`, 2000)
}

func TestErrorsAndPanicsAndDuplicatesStillGiveOneEffectAndOneMessage(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	const n = 300
	for range 2 { // the producer sends each message twice, under one UUID
		s.publish(s.topic("orders"), n)
	}
	var runs atomic.Int32
	s.router.AddHandler("billing", s.topic("orders"), s.subscriber("billing"), s.topic("invoices"), &outbox.Publisher{},
		func(msg *message.Message) ([]*message.Message, error) {
			if err := effect(msg); err != nil {
				return nil, err
			}
			switch runs.Add(1) % 7 {
			case 1:
				return nil, errors.New("no")
			case 2:
				panic("no")
			}
			return []*message.Message{message.NewMessage(msg.UUID, nil)}, nil
		})
	s.router.AddConsumerHandler("ledger", s.topic("invoices"), s.subscriber("ledger"), func(msg *message.Message) error {
		msg.UUID += " downstream"
		return effect(msg)
	})
	s.stack.MaxErrors = consumers.Never
	s.router.AddMiddleware(wm.Duplicator) // outside of the Stack
	s.run()
	s.settled(2)
	s.want(`SELECT count(*) FROM effects`, 2*n)
	s.want(`SELECT count(DISTINCT name) FROM effects`, 2*n)
	if got := s.arrived(s.topic("invoices")); got != n {
		t.Errorf("%d invoices in the stream, want %d", got, n)
	}
}

func TestAPoisonMessageBecomesADeadLetterOnTheBroker(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.publish(s.topic("orders"), 20)
	poison := s.topic("orders") + "-7"
	s.router.AddConsumerHandler("billing", s.topic("orders"), s.subscriber("billing"), func(msg *message.Message) error {
		return errors.Join(effect(msg), map[bool]error{true: errors.New("poison")}[msg.UUID == poison])
	})
	s.stack.MaxErrors = 3
	s.run()
	s.settled(1)
	s.want(`SELECT count(*) FROM effects`, 19)
	got, err := s.stream().GetLastMsgForSubject(within(t), s.topic("dead"))
	must(t, err)
	for header, want := range map[string]string{
		consumers.DeadUUID: poison, consumers.DeadErrors: "3", wm.PoisonedTopicKey: s.topic("orders"), wm.PoisonedHandlerKey: "billing",
	} {
		if got.Header.Get(header) != want {
			t.Errorf("%s: got %q, want %q", header, got.Header.Get(header), want)
		}
	}
}

func TestMessagesWithoutAUUIDByPosition(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	for range 50 {
		_, err := s.js.Publish(within(t), s.topic("orders"), []byte("foreign"))
		must(t, err)
	}
	var runs atomic.Int32
	s.router.AddConsumerHandler("billing", s.topic("orders"), s.subscriber("billing"), func(msg *message.Message) error {
		return errors.Join(effect(msg), map[bool]error{true: errors.New("no")}[runs.Add(1)%5 == 0])
	})
	s.stack.Once.Key = middleware.ByPosition
	s.run()
	s.settled(1)
	s.want(`SELECT count(*) FROM effects`, 50)
}

func TestMessagesWithoutAKeyAreDeadLettersOnTheBroker(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	for range 10 {
		_, err := s.js.Publish(within(t), s.topic("orders"), []byte("foreign"))
		must(t, err)
	}
	s.router.AddConsumerHandler("billing", s.topic("orders"), s.subscriber("billing"), effect)
	s.run()
	s.settled(1)
	s.want(`SELECT count(*) FROM effects`, 0)
	if got := s.arrived(s.topic("dead")); got != 10 {
		t.Errorf("%d dead letters, want 10", got)
	}
}

type placeOrder struct{ ID string }
type orderPlaced struct{ ID string }
type orderBilled struct{ ID string }

// CQRS: a command handler publishes an event through the event bus; a group of
// event handlers publishes another. Every handler fails at times.
func TestCQRSEventBusCommandProcessorAndEventGroup(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	const n = 100
	var calls atomic.Int32
	sometimes := func() error {
		if calls.Add(1)%4 == 0 {
			return errors.New("no")
		}
		return nil
	}
	write := func(ctx context.Context, name string) error {
		tx, ok := oncemill.TxFromContext(ctx)
		if !ok {
			return errors.New("no transaction")
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO effects VALUES ($1)`, name)
		return err
	}
	marshaler := cqrs.JSONMarshaler{GenerateName: cqrs.StructName}
	logger := watermill.NopLogger{}
	publisher := &outbox.Publisher{}

	bus, err := cqrs.NewEventBusWithConfig(publisher, cqrs.EventBusConfig{
		GeneratePublishTopic: func(p cqrs.GenerateEventPublishTopicParams) (string, error) { return s.topic("events"), nil },
		Marshaler:            marshaler,
	})
	must(t, err)
	commands, err := cqrs.NewCommandProcessorWithConfig(s.router, cqrs.CommandProcessorConfig{
		GenerateSubscribeTopic: func(p cqrs.CommandProcessorGenerateSubscribeTopicParams) (string, error) {
			return s.topic("commands"), nil
		},
		SubscriberConstructor: func(cqrs.CommandProcessorSubscriberConstructorParams) (message.Subscriber, error) {
			return s.subscriber("commands"), nil
		},
		Marshaler: marshaler, Logger: logger,
	})
	must(t, err)
	must(t, commands.AddHandlers(cqrs.NewCommandHandler("place", func(ctx context.Context, c *placeOrder) error {
		return errors.Join(write(ctx, "placed"), bus.Publish(ctx, &orderPlaced{c.ID}), sometimes())
	})))
	group, err := cqrs.NewEventGroupProcessorWithConfig(s.router, cqrs.EventGroupProcessorConfig{
		GenerateSubscribeTopic: func(cqrs.EventGroupProcessorGenerateSubscribeTopicParams) (string, error) {
			return s.topic("events"), nil
		},
		SubscriberConstructor: func(cqrs.EventGroupProcessorSubscriberConstructorParams) (message.Subscriber, error) {
			return s.subscriber("events"), nil
		},
		AckOnUnknownEvent: true, Marshaler: marshaler, Logger: logger,
	})
	must(t, err)
	must(t, group.AddHandlersGroup("accounting",
		cqrs.NewGroupEventHandler(func(ctx context.Context, e *orderPlaced) error {
			return errors.Join(write(ctx, "billed"), bus.Publish(ctx, &orderBilled{e.ID}), sometimes())
		}),
		cqrs.NewGroupEventHandler(func(ctx context.Context, e *orderBilled) error {
			return errors.Join(write(ctx, "closed"), sometimes())
		}),
	))
	s.stack.MaxErrors = consumers.Never
	s.run()

	// Commands are sent from outside of any handler, in a transaction of the
	// caller's own.
	tx, err := s.db.Begin()
	must(t, err)
	sender, err := cqrs.NewCommandBusWithConfig(publisher.InTx(tx), cqrs.CommandBusConfig{
		GeneratePublishTopic: func(cqrs.CommandBusGeneratePublishTopicParams) (string, error) { return s.topic("commands"), nil },
		Marshaler:            marshaler,
	})
	must(t, err)
	for i := range n {
		must(t, sender.Send(within(t), &placeOrder{fmt.Sprint(i)}))
	}
	must(t, tx.Commit())
	for s.arrived(s.topic("events")) < 2*n { // the chain's last messages
		time.Sleep(5 * time.Millisecond)
		must(t, within(t).Err())
	}
	s.settled(2)
	for _, step := range []string{"placed", "billed", "closed"} {
		s.want(`SELECT count(*) FROM effects WHERE name = '`+step+`'`, n)
	}
}

// closeSignal tells when the router begins to close its subscriber.
type closeSignal struct {
	message.Subscriber
	closing chan struct{}
}

func (c closeSignal) Close() error {
	close(c.closing)
	return c.Subscriber.Close()
}

func TestARouterThatClosesFinishesWhatItHasBegun(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.publish(s.topic("orders"), 3)
	begun := make(chan struct{}, 3)
	subscriber := closeSignal{s.subscriber("billing"), make(chan struct{})}
	s.router.AddConsumerHandler("billing", s.topic("orders"), subscriber, func(msg *message.Message) error {
		begun <- struct{}{}
		<-subscriber.closing
		return effect(msg)
	})
	s.run()
	for range 3 {
		<-begun
	}
	must(t, s.router.Close())
	s.want(`SELECT count(*) FROM effects`, 3)
	s.settled(1)
}
