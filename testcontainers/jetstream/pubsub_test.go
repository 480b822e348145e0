package jetstream_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/testcontainers"
)

// suiteVariable is set in the process that runs Watermill's suite.
const suiteVariable = "ONCEMILL_TEST_PUBSUB_SUITE"

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
// killed and started again meanwhile. Each run is a process of its own, because
// only its output tells which tests were skipped.
func TestPubSubOneInFlight(t *testing.T)  { runSuite(t, "OneInFlight") }
func TestPubSubManyInFlight(t *testing.T) { runSuite(t, "ManyInFlight") }

func runSuite(t *testing.T, name string) {
	t.Helper()
	// Compiled anew, without the race detector: TestReconnect has a race of its
	// own, on the list of what it has published.
	command := exec.Command("go", "test", "-run=^TestWatermillSuite$", "-v", "-count=1", "-timeout=5m", ".")
	command.Env = append(os.Environ(), suiteVariable+"="+name)
	output, err := command.CombinedOutput()
	results := resultsIn(output)
	if err != nil {
		t.Errorf("the suite fails: %v\n%s", err, failuresIn(output))
	}
	var skipped []string
	for test, result := range results {
		switch result {
		case "SKIP":
			skipped = append(skipped, test)
		case "FAIL":
			t.Errorf("%s fails", test)
		}
	}
	slices.Sort(skipped)
	expected := slices.Sorted(maps.Keys(suites()[name].skipped))
	if !slices.Equal(skipped, expected) {
		t.Errorf("skipped: %q\nexpected: %q", skipped, expected)
	}
	if passed := len(results) - len(skipped); passed < 13 {
		t.Errorf("only %d tests have passed: %v", passed, results)
	}
}

var resultLine = regexp.MustCompile(`(?m)^\s*--- (PASS|SKIP|FAIL): TestWatermillSuite/(\w+)/\S+ \(`)

// resultsIn returns what became of the suite's tests.
func resultsIn(output []byte) map[string]string {
	results := make(map[string]string)
	for _, match := range resultLine.FindAllSubmatch(output, -1) {
		results[string(match[2])] = string(match[1])
	}
	return results
}

// failuresIn leaves out the thousands of lines that the suite prints when all is
// well.
func failuresIn(output []byte) string {
	var kept []string
	for line := range bytes.Lines(output) {
		text := string(line)
		if strings.Contains(text, "publishing message") || strings.Contains(text, "=== ") || strings.Contains(text, "--- PASS") {
			continue
		}
		kept = append(kept, text)
	}
	return strings.Join(kept[max(0, len(kept)-200):], "")
}

// TestWatermillSuite is what TestPubSub... runs.
func TestWatermillSuite(t *testing.T) {
	name := os.Getenv(suiteVariable)
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
		return publisher, &lateSubscriber{Subscriber: subscriber}
	}
	tests.TestPubSub(t, s.features, func(t *testing.T) (message.Publisher, message.Subscriber) {
		return group(t, "suite")
	}, group)
}

// A lateSubscriber delivers a message no sooner than lateness after the stream
// has stored it. TestReconnect notes what it has published when Publish returns,
// and compares as soon as it has received enough; a message that is received
// before that would be one too many.
type lateSubscriber struct {
	*jetstream.Subscriber
	relays sync.WaitGroup
}

const lateness = 100 * time.Millisecond

func (s *lateSubscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	messages, err := s.Subscriber.Subscribe(ctx, topic)
	if err != nil {
		return nil, err
	}
	late := make(chan *message.Message)
	s.relays.Go(func() {
		defer close(late)
		for msg := range messages {
			d, _ := jetstream.FromContext(msg.Context())
			time.Sleep(time.Until(d.Time.Add(lateness)))
			select {
			case late <- msg:
			case <-msg.Context().Done():
				msg.Nack()
			}
		}
	})
	return late, nil
}

func (s *lateSubscriber) Close() error {
	defer s.relays.Wait()
	return s.Subscriber.Close()
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
