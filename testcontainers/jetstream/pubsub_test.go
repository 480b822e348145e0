package jetstream_test

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/pubsub"
)

// A suite is one run of Watermill's suite for publishers and subscribers.
type suite struct {
	features  tests.Features
	configure func(*jetstream.Subscriber)

	// skipped are the tests that Watermill's suite is known to skip, with the
	// reason.
	skipped map[string]string
}

func suites() map[string]suite {
	const oldMessages = "a group's new member continues where the others are; TestWithoutAGroupOldMessagesArrive runs it without a group"
	const needsOrder = "needs strict order, which is one in flight"
	features := tests.Features{ConsumerGroups: true, Persistent: true}
	ordered := features
	ordered.GuaranteedOrder = true
	return map[string]suite{
		"OneInFlight": {
			features: ordered,
			configure: func(s *jetstream.Subscriber) {
				s.MaxInFlight = 1
				// The suite nacks 300 times in a row, and in strict order that is
				// always the same message.
				s.NakDelay = func(uint64) time.Duration { return 10 * time.Millisecond }
			},
			skipped: map[string]string{"TestNewSubscriberReceivesOldMessages": oldMessages},
		},
		"ManyInFlight": {
			features:  features,
			configure: func(s *jetstream.Subscriber) { s.MaxInFlight = 64 },
			skipped: map[string]string{
				"TestNewSubscriberReceivesOldMessages": oldMessages,
				"TestNoAck":                            needsOrder,
				"TestPublishSubscribeInOrder":          needsOrder,
			},
		},
	}
}

// Watermill's own suite for publishers and subscribers, with a broker that is
// killed and started again meanwhile.
func TestPubSubOneInFlight(t *testing.T)  { runSuite(t, "OneInFlight") }
func TestPubSubManyInFlight(t *testing.T) { runSuite(t, "ManyInFlight") }

func runSuite(t *testing.T, name string) {
	t.Helper()
	pubsub.Run(t, name, slices.Collect(maps.Keys(suites()[name].skipped)))
}

// TestWatermillSuite is what TestPubSub... runs.
func TestWatermillSuite(t *testing.T) {
	name := os.Getenv(pubsub.Variable)
	if name == "" {
		return
	}
	s := suites()[name]
	server := startNATS(t)
	keepRunning(t, server)
	s.features.RestartServiceCommand = server.KillCommand()
	group := func(t *testing.T, group string) (message.Publisher, message.Subscriber) {
		subscriber := newSubscriber(t, server, group)
		s.configure(subscriber)
		// Short, so that what is published while the server is away is published
		// again before the suite has received the rest.
		publisher := &jetstream.Publisher{Conn: subscriber.Conn, Timeout: 500 * time.Millisecond}
		return publisher, &pubsub.Late{Subscriber: subscriber, Stored: stored}
	}
	tests.TestPubSub(t, s.features, func(t *testing.T) (message.Publisher, message.Subscriber) {
		return group(t, "suite")
	}, group)
}

func stored(msg *message.Message) time.Time {
	d, _ := jetstream.FromContext(msg.Context())
	return d.Time
}

// A subscriber without a group gets what was published before it came, which
// the suite has a test for.
func TestWithoutAGroupOldMessagesArrive(t *testing.T) {
	t.Parallel()
	server := startNATS(t)
	test := tests.TestContext{TestID: tests.NewTestID(), Features: tests.Features{Persistent: true, NewSubscriberReceivesOldMessages: true}}
	tests.TestNewSubscriberReceivesOldMessages(t, test, func(t *testing.T) (message.Publisher, message.Subscriber) {
		subscriber := newSubscriber(t, server, "")
		return &jetstream.Publisher{Conn: subscriber.Conn}, subscriber
	})
}

func startNATS(t *testing.T) *testcontainers.NATSServer {
	t.Helper()
	server, err := testcontainers.StartNATS(within(t), testcontainers.NATSOptions{})
	must(t, err)
	t.Cleanup(func() { must(t, server.Close()) })
	return server
}

// keepRunning starts the server again whenever it is killed.
func keepRunning(t *testing.T, server *testcontainers.NATSServer) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- server.KeepRunning(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func connect(t *testing.T, url string, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(url, append(opts, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond), nats.ReconnectJitter(0, 0))...)
	must(t, err)
	closed := make(chan struct{})
	nc.SetClosedHandler(func(*nats.Conn) { close(closed) })
	t.Cleanup(func() {
		nc.Close()
		<-closed
	})
	return nc
}

// newSubscriber makes a stream for each topic.
func newSubscriber(t *testing.T, server *testcontainers.NATSServer, group string) *jetstream.Subscriber {
	t.Helper()
	s := &jetstream.Subscriber{
		Conn:         connect(t, server.URL()),
		Group:        group,
		AckWait:      2 * time.Second, // so that what a crash has cut off comes again soon
		DrainTimeout: time.Second,
		CreateStream: func(topic string) natsjs.StreamConfig {
			return natsjs.StreamConfig{Name: strings.ToUpper(topic), Subjects: []string{topic}}
		},
		Logger: slog.New(slog.DiscardHandler),
	}
	t.Cleanup(func() { s.Close() })
	return s
}
