package kafka_test

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
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oncemill/oncemill/consumers/kafka"
	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/pubsub"
)

// A suite is one run of Watermill's suite for publishers and subscribers.
type suite struct {
	features  tests.Features
	configure func(*kafka.Subscriber)

	// skipped are the tests that Watermill's suite is known to skip, with the
	// reason.
	skipped map[string]string
}

func suites() map[string]suite {
	const needsOrder = "needs the order of a whole partition, which is one in flight"
	features := tests.Features{ConsumerGroups: true, Persistent: true, GuaranteedOrder: true, NewSubscriberReceivesOldMessages: true}
	byKey := features
	byKey.GuaranteedOrder = false
	return map[string]suite{
		"InOrder": {
			features:  features,
			configure: func(*kafka.Subscriber) {},
		},
		"ByKey": {
			features:  byKey,
			configure: func(s *kafka.Subscriber) { s.MaxInFlight = 16 },
			skipped:   map[string]string{"TestNoAck": needsOrder, "TestPublishSubscribeInOrder": needsOrder},
		},
	}
}

// Watermill's own suite for publishers and subscribers, with a broker that is
// killed and started again meanwhile.
func TestPubSubInOrder(t *testing.T) { runSuite(t, "InOrder") }
func TestPubSubByKey(t *testing.T)   { runSuite(t, "ByKey") }

func runSuite(t *testing.T, name string) {
	t.Helper()
	testcontainers.Kafka(t) // skips where there can be none
	pubsub.Run(t, name, slices.Collect(maps.Keys(suites()[name].skipped)))
}

// TestWatermillSuite is what TestPubSub... runs.
func TestWatermillSuite(t *testing.T) {
	name := os.Getenv(pubsub.Variable)
	if name == "" {
		return
	}
	s := suites()[name]
	server := ownKafka(t)
	keepRunning(t, server)
	s.features.RestartServiceCommand = server.KillCommand()
	group := func(t *testing.T, group string) (message.Publisher, message.Subscriber) {
		client, err := kgo.NewClient(
			kgo.SeedBrokers(server.Broker()),
			kgo.SessionTimeout(6*time.Second),
			kgo.HeartbeatInterval(200*time.Millisecond),
			kgo.MetadataMinAge(50*time.Millisecond),
			kgo.RetryBackoffFn(func(int) time.Duration { return 50 * time.Millisecond }),
		)
		must(t, err)
		t.Cleanup(client.Close)
		subscriber := &kafka.Subscriber{
			Client:       client,
			Group:        group,
			NakDelay:     func(uint64) time.Duration { return 10 * time.Millisecond },
			DrainTimeout: time.Second,
			CreateTopic:  func(string) kafka.TopicConfig { return kafka.TopicConfig{Partitions: 4} },
			Logger:       slog.New(slog.DiscardHandler),
		}
		s.configure(subscriber)
		publisher := &kafka.Publisher{
			Client: client,
			// Short, so that what is published while the server is away is
			// published again before the suite has received the rest.
			Timeout: 2 * time.Second,
			// The suite's messages that have the same payload want to be in order.
			Key: func(_ string, msg *message.Message) []byte { return msg.Payload },
		}
		t.Cleanup(func() { // the suite does not close all of them
			must(t, publisher.Close())
			must(t, subscriber.Close())
		})
		return publisher, &pubsub.Late{Subscriber: subscriber, Stored: stored}
	}
	tests.TestPubSub(t, s.features, func(t *testing.T) (message.Publisher, message.Subscriber) {
		if strings.Contains(t.Name(), "TestNewSubscriberReceivesOldMessages") {
			return group(t, "") // it is for subscribers that share nothing
		}
		return group(t, "suite")
	}, group)
}

func stored(msg *message.Message) time.Time {
	d, _ := kafka.FromContext(msg.Context())
	return d.Time
}

// keepRunning starts the server again whenever it is killed.
func keepRunning(t *testing.T, server *testcontainers.KafkaServer) {
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
