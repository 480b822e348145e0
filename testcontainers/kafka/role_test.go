package kafka_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	stock "github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
	wm "github.com/ThreeDotsLabs/watermill/message/router/middleware"
	_ "github.com/lib/pq"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/consumers/kafka"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/testcontainers/internal/actor"
)

// roleVariable makes the test binary play the role that it holds, as JSON.
const roleVariable = "ONCEMILL_TEST_ROLE"

// A role is what a process does. It says on its standard output, a line each:
//
//	running             it has begun to work
//	handling KEY        a handler has written its effect
//	committed KEY       its transaction is committed
//	duplicate KEY       a message was handled before
//	failed OP KEY ...   Once has failed
//	mishap KEY          its handler fails by chance
//	published N         a batch of N rows is acknowledged by the brokers
//	unpublished ...     a batch is not, or not all of it
//	dying KEY           it does to itself what its Fault says
//	freezing KEY        the same
type role struct {
	Kind     string // "worker" or "relay"
	Name     string // noted in the effects
	Postgres string // URL
	Brokers  []string
	Fault    fault // what it does to itself
	After    int   // how often it spares itself that

	// Of a worker.
	Topic       string
	Group       string
	Receipts    string // where it sends a message for each that it handles; "": nowhere
	Stock       bool   // Watermill's subscriber instead of Oncemill's
	MaxInFlight int
	MaxErrors   int
	IdleTimeout time.Duration
	Poison      string        // the key of a message that the handler cannot stand
	FailEvery   int           // the handler returns an error on every n-th run; 0: never
	Batch       int           // see oncemill.Inbox
	Ahead       int           // see kafka.Subscriber
	Mishaps     int           // the handler returns an error or panics on about every n-th run, at random; 0: never
	Seed        uint64        // of that
	Slow        time.Duration // what a run takes
}

type fault string

const (
	dieInHandler       fault = "die in the handler, after its writes"
	dieBeforeAck       fault = "die after the commit, before the ack"
	freezeInHandler    fault = "freeze in the handler, after its writes"
	freezeBeforeAck    fault = "freeze after the commit, before the ack"
	dieAfterPublishing fault = "die after publishing, before the commit"
)

// sessionTimeout is how long the brokers wait for a sign of life of a worker.
const sessionTimeout = 2 * time.Second

// A performer is a process that plays a role.
type performer struct {
	actor.Player
	role
	db     *sql.DB
	client *kgo.Client
	runs   atomic.Int64 // of the handler

	mu     sync.Mutex
	random *rand.Rand
}

func play(text string) error {
	a := &performer{}
	if err := json.Unmarshal([]byte(text), &a.role); err != nil {
		return err
	}
	a.random = rand.New(rand.NewPCG(a.Seed, 0))
	var err error
	if a.db, err = sql.Open("postgres", a.Postgres); err != nil {
		return err
	}
	defer a.db.Close()
	a.db.SetMaxOpenConns(16)
	a.db.SetMaxIdleConns(16)
	a.client, err = kgo.NewClient(
		kgo.SeedBrokers(a.Brokers...),
		kgo.SessionTimeout(sessionTimeout),
		kgo.HeartbeatInterval(sessionTimeout/10),
		kgo.MetadataMinAge(50*time.Millisecond),
		kgo.RetryBackoffFn(func(int) time.Duration { return 50 * time.Millisecond }),
	)
	if err != nil {
		return err
	}
	defer a.client.Close()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if a.Kind == "relay" {
		return a.relay(ctx)
	}
	return a.work(ctx)
}

// opportunity is called where a fault could happen to a message, and makes it
// happen if it is the performer's.
func (a *performer) opportunity(f fault, key string) {
	if a.Fault == f {
		a.Suffer(f == freezeInHandler || f == freezeBeforeAck, a.After, key)
	}
}

// work is the role of a worker: a router as a user would set it up.
func (a *performer) work(ctx context.Context) error {
	inbox := &oncemill.Inbox{
		DB:          a.db,
		IdleTimeout: a.IdleTimeout,
		Batch:       a.Batch,
		Observer: &oncemill.Observer{
			Committed: func(_ context.Context, _, key string, _ time.Duration) {
				a.Say("committed %s", key)
				a.opportunity(dieBeforeAck, key)
				a.opportunity(freezeBeforeAck, key)
			},
			Duplicate: func(_ context.Context, _, key string) { a.Say("duplicate %s", key) },
			Failed:    func(_ context.Context, err *oncemill.Error) { a.Say("failed %s %s %q", err.Op, err.Key, err.Err) },
		},
	}
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NewSlogLogger(slog.Default()))
	if err != nil {
		return err
	}
	once := middleware.Once{Inbox: inbox, Consumer: a.Group}
	if a.Stock {
		router.AddMiddleware(wm.Recoverer, once.Middleware)
	} else if err := (consumers.Stack{Once: once, MaxErrors: a.MaxErrors}).Apply(ctx, router); err != nil {
		return err
	}
	subscriber, err := a.subscriber()
	if err != nil {
		return err
	}
	router.AddHandler(a.Group, a.Topic, subscriber, a.Receipts, &outbox.Publisher{}, a.handle)
	go func() {
		<-router.Running()
		a.Say("running")
	}()
	return router.Run(ctx)
}

func (a *performer) subscriber() (message.Subscriber, error) {
	if !a.Stock {
		return &kafka.Subscriber{
			Client:      a.client,
			Group:       a.Group,
			MaxInFlight: a.MaxInFlight,
			Ahead:       a.Ahead,
			NakDelay:    func(uint64) time.Duration { return 20 * time.Millisecond },
		}, nil
	}
	config := stock.DefaultSaramaSubscriberConfig()
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	config.Consumer.Group.Session.Timeout = sessionTimeout
	config.Consumer.Group.Heartbeat.Interval = sessionTimeout / 10
	return stock.NewSubscriber(stock.SubscriberConfig{
		Brokers:               a.Brokers,
		Unmarshaler:           stock.DefaultMarshaler{},
		OverwriteSaramaConfig: config,
		ConsumerGroup:         a.Group,
	}, watermill.NewSlogLogger(slog.Default()))
}

var errWanted = errors.New("the test wants it to fail")

// handle writes one effect, and returns one message about it.
func (a *performer) handle(msg *message.Message) ([]*message.Message, error) {
	tx, ok := oncemill.TxFromContext(msg.Context())
	if !ok {
		return nil, errors.New("no transaction in the context")
	}
	partition, offset := a.place(msg)
	_, err := tx.ExecContext(msg.Context(), `
		INSERT INTO effects (handler, key, number, worker, partition, "offset", previous)
		VALUES ($1, $2, $3::integer, $4, $5, $6, (SELECT max("offset") FROM effects WHERE handler = $1 AND partition = $5))`,
		a.Group, msg.UUID, string(msg.Payload), a.Name, partition, offset)
	if err != nil {
		return nil, err
	}
	a.Say("handling %s", msg.UUID)
	a.opportunity(dieInHandler, msg.UUID)
	a.opportunity(freezeInHandler, msg.UUID)
	n := a.runs.Add(1)
	if msg.UUID == a.Poison || a.FailEvery > 0 && n%int64(a.FailEvery) == 0 {
		return nil, errWanted
	}
	if err := a.mishap(msg.UUID); err != nil {
		return nil, err
	}
	if a.Receipts == "" {
		return nil, nil
	}
	receipt := message.NewMessage(watermill.NewUUID(), msg.Payload)
	receipt.Metadata.Set(outbox.OrderingKeyMetadata, msg.Metadata.Get(outbox.OrderingKeyMetadata))
	return []*message.Message{receipt}, nil
}

// mishap makes a run fail, now and then, or only takes its time.
func (a *performer) mishap(key string) error {
	time.Sleep(a.Slow)
	if a.Mishaps == 0 {
		return nil
	}
	a.mu.Lock()
	roll := a.random.IntN(2 * a.Mishaps)
	a.mu.Unlock()
	if roll > 1 {
		return nil
	}
	a.Say("mishap %s", key)
	if roll == 0 {
		panic(errWanted)
	}
	return errWanted
}

func (a *performer) place(msg *message.Message) (partition int32, offset int64) {
	if a.Stock {
		partition, _ = stock.MessagePartitionFromCtx(msg.Context())
		offset, _ = stock.MessagePartitionOffsetFromCtx(msg.Context())
		return partition, offset
	}
	d, _ := kafka.FromContext(msg.Context())
	return d.Partition, d.Offset
}

// relay is the role of a relay.
func (a *performer) relay(ctx context.Context) error {
	sink := &kafka.Sink{Client: a.client}
	defer sink.Close()
	relay := &outbox.Relay{DB: a.db, Sink: faultySink{a, sink}, PollInterval: 100 * time.Millisecond, PublishTimeout: 2 * time.Second}
	a.Say("running")
	return relay.Run(ctx)
}

// A faultySink publishes, and gives the performer's fault its opportunities.
type faultySink struct {
	a     *performer
	inner outbox.Sink
}

func (s faultySink) PublishBatch(ctx context.Context, rows []outbox.Row) []error {
	errs := s.inner.PublishBatch(ctx, rows)
	if err := errors.Join(errs...); err != nil {
		s.a.Say("unpublished %q", fmt.Sprint(err))
		return errs
	}
	s.a.Say("published %d", len(errs))
	s.a.opportunity(dieAfterPublishing, rows[0].UUID)
	return errs
}
