package kafka_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/oncemill/oncemill/consumers/kafka"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/actor"
)

func TestMain(m *testing.M) {
	actor.Main(m, roleVariable, play,
		// Watermill's suite forgets one of its own, and so does sarama's metrics.
		goleak.IgnoreAnyFunction("github.com/ThreeDotsLabs/watermill/pubsub/tests.TestReconnect.func2"),
		goleak.IgnoreAnyFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick"))
}

// patience is for what should happen soon, on a busy machine.
const patience = 40 * time.Second

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	t.Cleanup(cancel)
	return ctx
}

// until waits for a state of which there is no signal.
func until(t testing.TB, what string, holds func() bool, state ...func() string) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			for _, s := range state {
				t.Log(s())
			}
			t.Fatalf("not in time: %s", what)
		}
	}
}

func receive(t testing.TB, messages <-chan *message.Message) *message.Message {
	t.Helper()
	select {
	case msg, ok := <-messages:
		if !ok {
			t.Fatal("the channel is closed")
		}
		return msg
	case <-time.After(patience):
		t.Fatal("no message arrives")
		return nil
	}
}

// nothing waits a moment for a message that should not come.
func nothing(t testing.TB, messages <-chan *message.Message, moment time.Duration) {
	t.Helper()
	select {
	case msg, ok := <-messages:
		if ok {
			t.Fatalf("message %q arrives", msg.Payload)
		}
	case <-time.After(moment):
	}
}

// complains checks that an error is there and has all the words.
func complains(t testing.TB, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", words)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("the error does not say %q: %v", word, err)
		}
	}
}

// A bench is a topic of a test's own.
type bench struct {
	t      testing.TB
	seeds  []string
	client *kgo.Client
	admin  *kadm.Client
	topic  string
}

// newBench makes a topic on the shared broker.
func newBench(t testing.TB, partitions int32) *bench {
	t.Helper()
	return benchOn(t, testcontainers.Kafka(t).Brokers, partitions)
}

func benchOn(t testing.TB, seeds []string, partitions int32) *bench {
	t.Helper()
	b := &bench{t: t, seeds: seeds, topic: "t" + watermill.NewShortUUID()}
	b.client = b.connect()
	b.admin = kadm.NewClient(b.client)
	b.createTopic(b.topic, partitions)
	return b
}

func ownKafka(t testing.TB) *testcontainers.KafkaServer {
	t.Helper()
	testcontainers.Kafka(t) // skips where there can be none
	server, err := testcontainers.StartKafka(within(t), testcontainers.KafkaOptions{})
	must(t, err)
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Errorf("close Kafka: %v", err)
		}
	})
	return server
}

func (b *bench) connect(opts ...kgo.Opt) *kgo.Client {
	b.t.Helper()
	client, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(b.seeds...),
		kgo.MetadataMinAge(50 * time.Millisecond),
		kgo.RetryBackoffFn(func(int) time.Duration { return 50 * time.Millisecond }),
	}, opts...)...)
	must(b.t, err)
	b.t.Cleanup(client.Close)
	return client
}

func (b *bench) createTopic(topic string, partitions int32) {
	b.t.Helper()
	_, err := b.admin.CreateTopic(within(b.t), partitions, 1, nil, topic)
	must(b.t, err)
	b.awaitTopic(topic)
}

// recreate deletes the topic and makes another one of the same name.
func (b *bench) recreate(partitions int32) {
	b.t.Helper()
	_, err := b.admin.DeleteTopic(within(b.t), b.topic)
	must(b.t, err)
	until(b.t, "the topic is gone", func() bool {
		topics, err := b.admin.ListTopics(within(b.t))
		return err == nil && !topics.Has(b.topic)
	})
	b.createTopic(b.topic, partitions)
}

// awaitTopic waits until the broker itself has heard of a topic.
func (b *bench) awaitTopic(topic string) {
	b.t.Helper()
	until(b.t, "the topic is there", func() bool {
		topics, err := b.admin.ListTopics(within(b.t), topic)
		return err == nil && topics.Error() == nil && topics[topic].Err == nil
	})
}

// subscriber returns one with settings that suit a test.
func (b *bench) subscriber(group string, opts ...kgo.Opt) *kafka.Subscriber {
	if group != "" {
		group += "-" + b.topic
	}
	s := &kafka.Subscriber{
		Client:       b.connect(append([]kgo.Opt{kgo.SessionTimeout(6 * time.Second), kgo.HeartbeatInterval(200 * time.Millisecond)}, opts...)...),
		Group:        group,
		NakDelay:     func(uint64) time.Duration { return 10 * time.Millisecond },
		DrainTimeout: 5 * time.Second,
		Logger:       slog.New(slog.DiscardHandler),
	}
	b.t.Cleanup(func() { s.Close() })
	return s
}

func (b *bench) subscribe(s *kafka.Subscriber) <-chan *message.Message {
	b.t.Helper()
	messages, err := s.Subscribe(context.Background(), b.topic)
	must(b.t, err)
	return messages
}

// store writes records as a foreign producer does.
func (b *bench) store(records ...*kgo.Record) {
	b.t.Helper()
	for _, r := range records {
		r.Topic = b.topic
	}
	must(b.t, b.client.ProduceSync(within(b.t), records...).FirstErr())
}

// publish stores records with the payloads from up to to, in order.
func (b *bench) publish(from, to int) {
	b.t.Helper()
	var records []*kgo.Record
	for i := from; i < to; i++ {
		records = append(records, &kgo.Record{Value: fmt.Append(nil, i)})
	}
	b.store(records...)
}

// spread stores records from up to to, one partition after another.
func (b *bench) spread(partitions, from, to int, value func(i int) []byte) {
	b.t.Helper()
	manual := b.connect(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchCompression(kgo.NoCompression()))
	var records []*kgo.Record
	for i := from; i < to; i++ {
		records = append(records, &kgo.Record{Topic: b.topic, Partition: int32(i % partitions), Value: value(i)})
	}
	must(b.t, manual.ProduceSync(within(b.t), records...).FirstErr())
}

func decimal(i int) []byte { return fmt.Append(nil, i) }

// committed returns the sum of what the group has committed of the topic.
func (b *bench) committed(group string) (sum int64) {
	b.t.Helper()
	offsets, err := b.admin.FetchOffsets(within(b.t), group+"-"+b.topic)
	must(b.t, err)
	offsets.Each(func(o kadm.OffsetResponse) {
		if o.Topic == b.topic && o.At > 0 {
			sum += o.At
		}
	})
	return sum
}

func (b *bench) awaitCommitted(group string, want int64) {
	b.t.Helper()
	until(b.t, fmt.Sprintf("%d are committed", want), func() bool { return b.committed(group) == want },
		func() string { return fmt.Sprintf("%d are committed", b.committed(group)) })
}

// A logbook collects what is logged.
type logbook struct{ testenv.Log }

func (l *logbook) has(words string) bool { return l.Count(words) > 0 }

func (l *logbook) await(t testing.TB, words string) {
	t.Helper()
	until(t, fmt.Sprintf("%q is logged", words), func() bool { return l.has(words) }, l.String)
}
