package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oncemill/oncemill/internal/delivery"
)

// What the zero values of a Subscriber's fields mean.
const (
	DefaultCommitInterval = 100 * time.Millisecond
	DefaultDrainTimeout   = 30 * time.Second
)

// mostAhead is the largest Ahead: a partition holds no more when it is fetched from
// again.
const mostAhead = mostHeld / 2

// setupTimeout bounds what a Subscribe asks the brokers for.
const setupTimeout = 10 * time.Second

// ErrClosed means that a Subscriber or a Publisher is used after its Close.
var ErrClosed = errors.New("oncemill: kafka: closed")

// A Subscriber delivers the messages of Kafka topics. It is a
// message.Subscriber.
//
// The fields must not change once it is in use, and it must not be copied.
type Subscriber struct {
	// Client leads to the brokers: its seeds, TLS, SASL and other options are
	// taken over by a client that each Subscribe makes for itself. It must not
	// consume, and stays open when the Subscriber is closed. Required. Its hooks
	// are taken over as well, so they must be able to serve several clients.
	//
	// Its options may also say how to consume, such as kgo.SessionTimeout,
	// kgo.Balancers, kgo.InstanceID (to which the topic is added, since each
	// topic is another member of the group), kgo.ConsumeStartOffset (the default is the
	// topic's beginning) and kgo.FetchIsolationLevel (the default is here
	// kgo.ReadCommitted).
	Client *kgo.Client

	// Group is the consumer group: the processes that divide the partitions of a
	// topic among themselves. The brokers remember over restarts how far it has
	// come.
	//
	// "": every Subscribe gets all messages of the topic, from its beginning, and
	// nothing is remembered.
	Group string

	// MaxInFlight is how many messages of a partition are handled at a time. 0
	// and 1 mean one after another, in the order of the partition. With more the
	// order is only kept among messages that have the same record key; those
	// without one have no order.
	MaxInFlight int

	// Ahead is how many messages of a line may be handed out at a time, where what
	// handles them keeps their order: Once does, if its Inbox has a Batch above 1.
	// A line is a partition, or with a MaxInFlight above 1 a record key of a
	// partition, of which then at most MaxInFlight have messages handed out. So of
	// a partition there are at most MaxInFlight (or 1) times Ahead, which take
	// effect in their turn. With twice the Inbox's Batch, divided by MaxInFlight,
	// a single partition fills one batch while another is under way. 0 and 1 mean
	// that each waits until the one before it in its line was acknowledged.
	//
	// A Subscribe begins with one, until Once says that it keeps the order. If a
	// message is acknowledged by whoever has not said so, as with Guard, without a
	// Batch, or by a router without consumers.Stack, it goes on with one to its end,
	// and logs an error.
	Ahead int

	// NakDelay is after which time a message is delivered again whose attempt-th
	// delivery, counted from 1, was nacked. Until then those behind it wait: of
	// its partition, or with a MaxInFlight above 1 of its record key. nil means
	// 100 ms, doubled with every attempt up to 30 s. It is called from many
	// goroutines.
	NakDelay func(attempt uint64) time.Duration

	// CommitInterval is the least time between two commits of offsets. After a
	// crash, what was handled since the last one is delivered again. While the
	// group rebalances there are none. 0 means DefaultCommitInterval.
	CommitInterval time.Duration

	// DrainTimeout is for how long Close, or the end of a Subscribe's context,
	// waits for the messages that are being handled. What takes longer is
	// delivered again, to whoever gets the partition. 0 means
	// DefaultDrainTimeout. Give Watermill's RouterConfig.CloseTimeout some
	// seconds more.
	DrainTimeout time.Duration

	// IgnoreTimestamps keeps the timestamps of records from being taken for the
	// time at which they were sent. Set it if producers give them another
	// meaning, such as the time of an event long ago: otherwise messages from
	// before the purge of old claims are refused as oncemill.ErrTooOld.
	IgnoreTimestamps bool

	// CreateTopic tells how to create a topic that is not there. nil: it is an
	// error if it is not.
	CreateTopic func(topic string) TopicConfig

	// Logger hears which partitions come and go, when something does not work
	// and works again, and once in a process of each setting of a topic with which
	// messages can be lost, or happen again: one replica, min.insync.replicas of 1,
	// unclean leaders, a retention.ms beyond Inbox.Retention where consumers.Stack has
	// told it. nil means slog.Default().
	Logger *slog.Logger

	subs delivery.Registry
}

var (
	_ message.Subscriber           = (*Subscriber)(nil)
	_ message.SubscribeInitializer = (*Subscriber)(nil)
)

// Subscribe delivers the messages of a topic until ctx ends or the Subscriber is
// closed, and then closes the channel, after the messages that are being
// handled were acknowledged or DrainTimeout is over. It creates the topic if
// there is none and CreateTopic is set.
//
// An error names what is wrong and what to do: a field, brokers that cannot be
// reached or refuse the credentials, a missing topic. Later errors are logged,
// and what failed is tried again.
//
// A message's context carries its Delivery. It ends with ctx, with Close, once
// the message is acknowledged or nacked, and when the partition goes to another
// member of the group.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	sub, err := s.prepare(topic)
	if err != nil {
		return nil, err
	}
	session, err := sub.begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("oncemill: kafka: subscribe to %q: %w", topic, err)
	}
	sub.warn(ctx)
	if !s.subs.Go(sub.stop, func() { sub.run(ctx, session) }) {
		session.leave()
		return nil, ErrClosed
	}
	return sub.out, nil
}

// SubscribeInitialize creates the topic if there is none and CreateTopic is set.
// Messages published from then on wait for the group.
func (s *Subscriber) SubscribeInitialize(topic string) error {
	sub, err := s.prepare(topic)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), setupTimeout)
	defer cancel()
	if err := ensureTopic(ctx, sub.base, topic, sub.createTopic); err != nil {
		return fmt.Errorf("oncemill: kafka: initialize %q: %w", topic, err)
	}
	return nil
}

// Close ends all subscriptions: it hands out nothing more, waits up to
// DrainTimeout for the messages that are being handled, commits what is
// finished, leaves the group and closes the channels. It returns once that is
// done, and returns nil; what was not acknowledged in time is logged. While the
// group is rebalancing nothing can be committed; then what was acknowledged since
// that began is delivered again.
func (s *Subscriber) Close() error {
	s.subs.Close()
	return nil
}

// prepare checks the fields and the topic.
func (s *Subscriber) prepare(topic string) (*subscription, error) {
	set, err := s.settings()
	if err == nil {
		err = checkTopic(topic)
	}
	if err != nil {
		return nil, fmt.Errorf("oncemill: kafka: %w", err)
	}
	if s.subs.Closed() {
		return nil, ErrClosed
	}
	return newSubscription(set, topic), nil
}

// settings are a Subscriber's fields with the defaults filled in.
type settings struct {
	base             *kgo.Client // the user's
	group            string
	maxInFlight      int
	ahead            int
	nakDelay         func(attempt uint64) time.Duration
	commitInterval   time.Duration
	drainTimeout     time.Duration
	ignoreTimestamps bool
	createTopic      func(topic string) TopicConfig
	log              *slog.Logger
}

func (s *Subscriber) settings() (settings, error) {
	set := settings{
		base:             s.Client,
		group:            s.Group,
		maxInFlight:      max(s.MaxInFlight, 1),
		ahead:            max(s.Ahead, 1),
		nakDelay:         s.NakDelay,
		commitInterval:   s.CommitInterval,
		drainTimeout:     s.DrainTimeout,
		ignoreTimestamps: s.IgnoreTimestamps,
		createTopic:      s.CreateTopic,
		log:              s.Logger,
	}
	switch {
	case s.MaxInFlight < 0:
		return set, fmt.Errorf("Subscriber.MaxInFlight is %d: must be positive, or 0 for 1", s.MaxInFlight)
	case s.Ahead < 0 || s.Ahead > mostAhead:
		return set, fmt.Errorf("Subscriber.Ahead is %d: must be from 0 to %d; twice Inbox.Batch is a good number", s.Ahead, mostAhead)
	case s.Ahead > 1 && s.MaxInFlight > mostHeld/s.Ahead:
		return set, fmt.Errorf("Subscriber.Ahead is %d and MaxInFlight %d: their product must not be above %d, or a partition would have to hold more messages than it may; lower one of them", s.Ahead, s.MaxInFlight, mostHeld)
	case s.CommitInterval < 0:
		return set, fmt.Errorf("Subscriber.CommitInterval is %v: must be positive, or 0 for %v", s.CommitInterval, DefaultCommitInterval)
	case s.DrainTimeout < 0:
		return set, fmt.Errorf("Subscriber.DrainTimeout is %v: must be positive, or 0 for %v", s.DrainTimeout, DefaultDrainTimeout)
	}
	if err := checkClient("Subscriber", s.Client); err != nil {
		return set, err
	}
	if err := checkGroup(s.Group); err != nil {
		return set, err
	}
	if set.commitInterval == 0 {
		set.commitInterval = DefaultCommitInterval
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
	return set, nil
}
