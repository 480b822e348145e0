package jetstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/internal/delivery"
)

// What the zero values of a Subscriber's fields mean.
const (
	DefaultMaxInFlight  = 64
	DefaultAckWait      = 30 * time.Second
	DefaultDrainTimeout = 30 * time.Second
)

// setupTimeout bounds what a Subscribe asks the server for.
const setupTimeout = 10 * time.Second

// ErrClosed means that a Subscriber or a Publisher is used after its Close.
var ErrClosed = errors.New("oncemill: jetstream: closed")

// A Subscriber delivers the messages of JetStream streams, many at a time. It is
// a message.Subscriber. A topic is a NATS subject; wildcards are allowed.
//
// The fields must not change once it is in use, and it must not be copied.
type Subscriber struct {
	// Conn is the connection, which stays open when the Subscriber is closed.
	// Required. It should be made with nats.MaxReconnects(-1): otherwise it is
	// given up for good two minutes after the server went away, which ends all
	// subscriptions.
	Conn *nats.Conn

	// Group is shared by the processes that divide the messages of a topic among
	// themselves. Their durable consumer on the server is named Group~topic, with
	// ~ for the dots in the topic, and remembers over restarts what was
	// acknowledged. Letters, digits, - and _.
	//
	// "": every Subscribe gets a consumer of its own, and with it all messages of
	// the topic from the stream's beginning; it is forgotten on Close.
	Group string

	// Stream is the stream to read. "": the one that captures the topic, which
	// must be only one.
	Stream string

	// MaxInFlight is how many messages a Subscribe holds at most: being handled,
	// waiting to be, or asked for. 0 means DefaultMaxInFlight.
	//
	// 1 means strict order: then the server too has no more than one message
	// unacknowledged, over all members of the group.
	MaxInFlight int

	// AckWait is for how long the server waits for a sign of life of a message
	// before it delivers it again. The Subscriber gives one every third of it, as
	// long as the process is alive, so this is not a limit on handlers but the
	// time to recover from a crash. 0 means DefaultAckWait, or what an existing
	// consumer is configured to.
	AckWait time.Duration

	// NakDelay is after which time a message is delivered again whose attempt-th
	// delivery, counted from 1, was nacked. nil means 100 ms, doubled with every
	// attempt up to 30 s. A message nacked on Close is delivered again at once.
	// It is called from many goroutines.
	NakDelay func(attempt uint64) time.Duration

	// DrainTimeout is for how long Close, or the end of a Subscribe's context,
	// waits for the messages that are being handled. What takes longer is
	// delivered again after AckWait. 0 means DefaultDrainTimeout. Give Watermill's
	// RouterConfig.CloseTimeout some seconds more.
	DrainTimeout time.Duration

	// CreateStream tells how to create the stream for a topic if there is none.
	// nil: it is an error if there is none.
	CreateStream func(topic string) natsjs.StreamConfig

	// Configure has the last word on the configuration of a consumer, a new or
	// an existing one; MaxDeliver has to stay -1 and AckPolicy explicit. It may
	// be called more than once.
	Configure func(*natsjs.ConsumerConfig)

	// APIPrefix is that of the JetStream API, such as "$JS.hub.API" for a domain
	// hub. "" means "$JS.API".
	APIPrefix string

	// Logger hears when something does not work and works again, and once in a process of
	// each setting of a stream with which messages can be lost, or happen again: one
	// replica, in memory, a MaxAge beyond Inbox.Retention where consumers.Stack has told
	// it. nil means slog.Default().
	Logger *slog.Logger

	subs delivery.Registry
}

var (
	_ message.Subscriber           = (*Subscriber)(nil)
	_ message.SubscribeInitializer = (*Subscriber)(nil)
)

// Subscribe delivers the messages of a topic until ctx ends or the Subscriber is
// closed, and then closes the channel, after the messages that are being
// handled were acknowledged or DrainTimeout is over. It creates the consumer if
// there is none, and the stream if CreateStream is set.
//
// An error names what is wrong and what to do: a field, a missing stream, a
// consumer that would lose messages. Later errors are logged, and what failed is
// tried again; only a connection that is closed for good ends a subscription.
//
// A message's context carries its Delivery. It ends with ctx, with Close, and
// once the message is acknowledged or nacked.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	sub, err := s.prepare(topic)
	if err != nil {
		return nil, err
	}
	src, err := sub.open(ctx, nil, 0)
	if err != nil {
		return nil, fmt.Errorf("oncemill: jetstream: subscribe to %q: %w", topic, err)
	}
	if !s.subs.Go(sub.stop, func() { sub.run(ctx, src) }) {
		return nil, ErrClosed // the server forgets a consumer without a group by itself
	}
	return sub.out, nil
}

// SubscribeInitialize creates what Subscribe needs on the server: the stream, if
// CreateStream is set, and the consumer of the group. Messages published from
// then on wait for the group.
func (s *Subscriber) SubscribeInitialize(topic string) error {
	sub, err := s.prepare(topic)
	if err != nil {
		return err
	}
	if s.Group != "" {
		_, err = sub.open(context.Background(), nil, 0)
	} else {
		ctx, cancel := context.WithTimeout(context.Background(), setupTimeout)
		defer cancel()
		_, err = sub.findStream(ctx)
	}
	if err != nil {
		return fmt.Errorf("oncemill: jetstream: initialize %q: %w", topic, err)
	}
	return nil
}

// Close ends all subscriptions: it fetches nothing more, gives back the messages
// that no handler has, waits up to DrainTimeout for the others, and closes the
// channels. It returns once that is done, and returns nil; what was not
// acknowledged in time is logged.
func (s *Subscriber) Close() error {
	s.subs.Close()
	return nil
}

// prepare checks the fields and the topic.
func (s *Subscriber) prepare(topic string) (*subscription, error) {
	fail := func(err error) (*subscription, error) {
		return nil, fmt.Errorf("oncemill: jetstream: %w", err)
	}
	set, err := s.settings()
	if err != nil {
		return fail(err)
	}
	if err := checkSubject(topic, true); err != nil {
		return fail(err)
	}
	if s.subs.Closed() {
		return nil, ErrClosed
	}
	return newSubscription(set, topic), nil
}

// settings are a Subscriber's fields with the defaults filled in. An ackWait of
// 0 leaves an existing consumer as it is.
type settings struct {
	conn         *nats.Conn
	js           natsjs.JetStream
	api          string // what the subjects of the JetStream API begin with
	group        string
	stream       string
	maxInFlight  int
	ackWait      time.Duration
	nakDelay     func(attempt uint64) time.Duration
	drainTimeout time.Duration
	createStream func(topic string) natsjs.StreamConfig
	configure    func(*natsjs.ConsumerConfig)
	log          *slog.Logger
}

func (s *Subscriber) settings() (settings, error) {
	set := settings{
		conn:         s.Conn,
		group:        s.Group,
		stream:       s.Stream,
		maxInFlight:  s.MaxInFlight,
		ackWait:      s.AckWait,
		nakDelay:     s.NakDelay,
		drainTimeout: s.DrainTimeout,
		createStream: s.CreateStream,
		configure:    s.Configure,
		log:          s.Logger,
	}
	switch {
	case s.Conn == nil:
		return set, errors.New("Subscriber.Conn is nil: set it to a *nats.Conn")
	case s.MaxInFlight < 0:
		return set, fmt.Errorf("Subscriber.MaxInFlight is %d: must be positive, or 0 for %d", s.MaxInFlight, DefaultMaxInFlight)
	case s.AckWait < 0:
		return set, fmt.Errorf("Subscriber.AckWait is %v: must be positive, or 0 for %v", s.AckWait, DefaultAckWait)
	case s.DrainTimeout < 0:
		return set, fmt.Errorf("Subscriber.DrainTimeout is %v: must be positive, or 0 for %v", s.DrainTimeout, DefaultDrainTimeout)
	}
	if err := checkGroup(s.Group); err != nil {
		return set, err
	}
	if set.maxInFlight == 0 {
		set.maxInFlight = DefaultMaxInFlight
	}
	if set.drainTimeout == 0 {
		set.drainTimeout = DefaultDrainTimeout
	}
	if set.nakDelay == nil {
		set.nakDelay = delivery.NakDelay
	}
	if set.log == nil {
		set.log = slog.Default()
	}
	return set, set.setAPI(s.APIPrefix)
}

func (set *settings) setAPI(prefix string) (err error) {
	set.api = natsjs.DefaultAPIPrefix
	if prefix == "" {
		set.js, err = natsjs.New(set.conn)
		return err
	}
	set.api = strings.TrimSuffix(prefix, ".") + "."
	set.js, err = natsjs.NewWithAPIPrefix(set.conn, set.api)
	return err
}
