package doctor_test

import (
	"context"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/internal/doctor"
	"github.com/oncemill/oncemill/internal/testenv"
)

// A broker is the tests' NATS server, and a name of the test's own on it.
type broker struct {
	t    *testing.T
	js   jetstream.JetStream
	name string
}

// keeper makes a stream that stays: with the last one the server deletes the directory of
// all, and then cannot create one that is made at that moment.
var keeper sync.Once

func newBroker(t *testing.T) *broker {
	t.Helper()
	conn, err := nats.Connect(testenv.NATSURL(t))
	must(t, err)
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	must(t, err)
	keeper.Do(func() {
		_, err := js.CreateOrUpdateStream(t.Context(), jetstream.StreamConfig{Name: "keeper_of_the_directory", Subjects: []string{"keeper"}})
		must(t, err)
	})
	return &broker{t, js, regexp.MustCompile(`\W`).ReplaceAllString(t.Name(), "_")}
}

// stream makes a stream with nothing wrong but its single replica, and then what change does.
func (b *broker) stream(change func(*jetstream.StreamConfig)) jetstream.Stream {
	b.t.Helper()
	config := jetstream.StreamConfig{Name: b.name, Subjects: []string{b.name + ".>"}, MaxAge: 3 * 24 * time.Hour}
	if change != nil {
		change(&config)
	}
	stream, err := b.js.CreateStream(b.t.Context(), config)
	must(b.t, err)
	b.t.Cleanup(func() { _ = b.js.DeleteStream(context.Background(), config.Name) })
	return stream
}

func (b *broker) look(n doctor.NATS) report {
	b.t.Helper()
	n.Connect = func() (*nats.Conn, error) { return nats.Connect(testenv.NATSURL(b.t)) }
	if n.Briefing.Kept == 0 {
		n.Briefing.Kept = week
	}
	return report{t: b.t, all: n.Check(b.t.Context())}
}

func TestAStreamOfTheOutboxsTopicIsLookedAt(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	b.stream(nil)
	r := b.look(doctor.NATS{Briefing: doctor.Briefing{Topics: []string{b.name + ".orders"}}})
	r.want(doctor.OK, "connection", "127.0.0.1")
	r.want(doctor.OK, "JetStream")
	r.want(doctor.OK, "max_payload", "1.0 MB")
	r.want(doctor.Warn, "replicas", b.name, "one replica", "power failure", "sync_interval: always")
	for _, f := range r.all {
		if strings.Contains(f.Do, "--replicas") { // needs a cluster
			t.Errorf("on one server: %s", f.Do)
		}
	}
	r.wantOnly("replicas")
}

func TestATopicThatNoStreamCapturesIsNamed(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	r := b.look(doctor.NATS{Briefing: doctor.Briefing{Topics: []string{"nowhere.at.all"}}, Streams: []string{"no-such-stream"}})
	r.want(doctor.Fail, "stream", `no stream captures topic "nowhere.at.all"`, "wait in the outbox", "nats stream add")
	for _, f := range r.all {
		if f.Check == "stream" && f.Level == doctor.Fail && f.Found == `there is no stream "no-such-stream"` {
			return
		}
	}
	t.Errorf("no finding about the stream: %v", r.all)
}

func TestStreamsThatDoNotHoldWhatTheyShould(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(*jetstream.StreamConfig)
		level  doctor.Level
		check  string
		words  []string
	}{
		"memory":   {func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage }, doctor.Fail, "storage", []string{"is in memory", "a restart"}},
		"for ever": {func(c *jetstream.StreamConfig) { c.MaxAge = 0 }, doctor.Warn, "retention", []string{"keeps messages for ever", "claims are kept for 7 days", "ErrTooOld", "--max-age 168h"}},
		"too long": {func(c *jetstream.StreamConfig) { c.MaxAge = 30 * 24 * time.Hour }, doctor.Warn, "retention", []string{"for 30 days", "7 days"}},
		"window":   {func(c *jetstream.StreamConfig) { c.Duplicates = time.Second }, doctor.Warn, "duplicate window", []string{"for 1s only", "--dupe-window 2m"}},
		"interest": {func(c *jetstream.StreamConfig) { c.Retention = jetstream.InterestPolicy }, doctor.Warn, "consumers", []string{"has none", "dropped"}},
		"small":    {func(c *jetstream.StreamConfig) { c.MaxMsgSize = 1024 }, doctor.Warn, "limits", []string{"1.0 kB at most", "dead letter"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBroker(t)
			b.stream(test.change)
			b.look(doctor.NATS{Streams: []string{b.name}}).want(test.level, test.check, append(test.words, b.name)...)
		})
	}
}

// What is acknowledged is gone from a work queue: nothing of it comes again later.
func TestAWorkQueueHasNoHorizon(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	b.stream(func(c *jetstream.StreamConfig) { c.Retention, c.MaxAge = jetstream.WorkQueuePolicy, 0 })
	b.look(doctor.NATS{Streams: []string{b.name}}).wantOnly("replicas")
}

func TestTheHorizonIsComparedWithTheConsumerThatForgetsFirst(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	b.stream(nil)
	b.look(doctor.NATS{Streams: []string{b.name}, Briefing: doctor.Briefing{Kept: 24 * time.Hour, Consumer: "billing"}}).
		want(doctor.Warn, "retention", "for 3 days", `claims of consumer "billing" are kept for 24h`)
}

func TestAStreamThatIsNearlyFullIsNamed(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	b.stream(func(c *jetstream.StreamConfig) { c.MaxMsgs = 10 })
	for range 9 {
		_, err := b.js.Publish(t.Context(), b.name+".orders", nil)
		must(t, err)
	}
	b.look(doctor.NATS{Streams: []string{b.name}}).want(doctor.Warn, "limits", "nearly used up: 9 of 10", "DiscardOld")
}

func TestConsumersThatLoseMessagesAreNamed(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	stream := b.stream(nil)
	for name, c := range map[string]jetstream.ConsumerConfig{
		"good":   {AckPolicy: jetstream.AckExplicitPolicy, MaxDeliver: -1},
		"limit":  {AckPolicy: jetstream.AckExplicitPolicy, MaxDeliver: 3},
		"hasty":  {AckPolicy: jetstream.AckExplicitPolicy, MaxDeliver: -1, AckWait: time.Second},
		"no-ack": {AckPolicy: jetstream.AckNonePolicy, MaxDeliver: -1},
	} {
		c.Durable = name
		_, err := stream.CreateConsumer(t.Context(), c)
		must(t, err)
	}
	// An ordered consumer acknowledges nothing, and nobody makes it again.
	ordered, err := stream.OrderedConsumer(t.Context(), jetstream.OrderedConsumerConfig{})
	must(t, err)
	_, err = ordered.Info(t.Context())
	must(t, err)
	r := b.look(doctor.NATS{Streams: []string{b.name}})
	r.want(doctor.Warn, "consumers", `consumer "limit"`, "after 3 deliveries", "stuck", "--max-deliver -1")
	r.want(doctor.Warn, "consumers", `consumer "hasty"`, "after 1s", "--wait 30s")
	r.want(doctor.Warn, "consumers", `consumer "no-ack"`, "--ack explicit")
	n := 0
	for _, f := range r.all {
		if f.Check == "consumers" {
			n++
		}
	}
	if n != 3 {
		t.Errorf("%d findings about consumers, want 3: %v", n, r.all)
	}
}

func TestConsumersThatStandStillAreNamed(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	stream := b.stream(nil)
	for range 3 {
		_, err := b.js.Publish(t.Context(), b.name+".orders", nil)
		must(t, err)
	}
	consumer, err := stream.CreateConsumer(t.Context(), jetstream.ConsumerConfig{Durable: "idle", AckPolicy: jetstream.AckExplicitPolicy, MaxDeliver: -1, MaxAckPending: 2})
	must(t, err)
	b.look(doctor.NATS{Streams: []string{b.name}}).want(doctor.Warn, "consumers", `consumer "idle"`, "3 messages wait, and nobody receives", "start its workers")
	batch, err := consumer.Fetch(2)
	must(t, err)
	for range batch.Messages() { // they are not acknowledged
	}
	b.look(doctor.NATS{Streams: []string{b.name}}).want(doctor.Warn, "consumers", "has 2 messages that are not acknowledged", "1 message waits", "--max-pending")
}

func TestABrokerThatCannotBeReached(t *testing.T) {
	t.Parallel()
	n := doctor.NATS{Address: "127.0.0.1:1", Connect: func() (*nats.Conn, error) { return nats.Connect("nats://127.0.0.1:1") }}
	findings := n.Check(t.Context())
	if len(findings) != 1 {
		t.Errorf("got %v", findings)
	}
	report{t: t, all: findings}.want(doctor.Fail, "connection", "127.0.0.1:1 cannot be reached", "outbox holds waits", "--nats-url")
}
