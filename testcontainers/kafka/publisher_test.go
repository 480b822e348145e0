package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oncemill/oncemill/consumers/kafka"
	"github.com/oncemill/oncemill/outbox"
)

func rowsFor(topic string, n int) []outbox.Row {
	rows := make([]outbox.Row, n)
	for i := range rows {
		rows[i] = outbox.Row{ID: int64(i), DedupID: fmt.Sprint("dedup-", i), Topic: topic, UUID: fmt.Sprint("uuid-", i), OrderingKey: fmt.Append(nil, i%10), Payload: fmt.Append(nil, i)}
	}
	return rows
}

func (b *bench) stored() (n int64) {
	b.t.Helper()
	ends, err := b.admin.ListEndOffsets(within(b.t), b.topic)
	must(b.t, err)
	ends.Each(func(o kadm.ListedOffset) { n += o.Offset })
	return n
}

func (b *bench) sink(opts ...kgo.Opt) *kafka.Sink {
	sink := &kafka.Sink{Client: b.connect(opts...)}
	b.t.Cleanup(func() { must(b.t, sink.Close()) })
	return sink
}

// limit makes the topic take no larger batches of records than so many bytes.
func (b *bench) limit(bytes int) {
	b.t.Helper()
	value := fmt.Sprint(bytes)
	_, err := b.admin.AlterTopicConfigs(within(b.t), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "max.message.bytes", Value: &value}}, b.topic)
	must(b.t, err)
}

func TestRowsOfAKeyGoToOnePartitionInTheirOrder(t *testing.T) {
	t.Parallel()
	b := newBench(t, 4)
	sink := b.sink()
	must(t, sink.Check(within(t)))
	must(t, errors.Join(sink.PublishBatch(within(t), rowsFor(b.topic, 1000))...))
	messages := b.subscribe(b.subscriber(""))
	partition, last := make(map[string]int32), make(map[string]int)
	for range 1000 {
		msg := receive(t, messages)
		d, _ := kafka.FromContext(msg.Context())
		key, n := string(d.Key), number(t, msg)
		if was, ok := partition[key]; ok && (was != d.Partition || last[key] >= n) {
			t.Fatalf("key %s: %d in partition %d after %d in %d", key, n, d.Partition, last[key], was)
		}
		partition[key], last[key] = d.Partition, n
		if msg.Metadata[outbox.DedupMetadata] != fmt.Sprint("dedup-", n) {
			t.Errorf("dedup id %q", msg.Metadata[outbox.DedupMetadata])
		}
		msg.Ack()
	}
}

// The brokers refuse a batch of records as a whole. That must not be held against
// rows that are small enough.
func TestOnlyTheRowThatIsTooLargeIsRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	b.limit(2000)
	rows := rowsFor(b.topic, 200) // more than 2,000 bytes together
	rows[50].Payload = make([]byte, 5000)
	rows[60].Payload = make([]byte, 5_000_000) // more than the client takes
	refused := 0
	for i, err := range b.sink(kgo.ProducerBatchCompression(kgo.NoCompression())).PublishBatch(within(t), rows) {
		switch {
		case i == 50 || i == 60:
			refused++
			if !errors.Is(err, outbox.ErrRefused) {
				t.Errorf("row %d: %v", i, err)
			}
			complains(t, err, "max.message.bytes", b.topic)
		case err != nil:
			t.Errorf("row %d: %v", i, err)
		}
	}
	if n := b.stored(); n != 198 {
		t.Errorf("%d records are stored, want 198", n)
	}
}

// What a topic takes is what counts, also if it is more than clients send usually.
func TestALargeRowIsPublishedWhereTheTopicTakesIt(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	b.limit(4_000_000)
	rows := rowsFor(b.topic, 3)
	rows[1].Payload = make([]byte, 3_000_000)
	must(t, errors.Join(b.sink(kgo.ProducerBatchCompression(kgo.NoCompression())).PublishBatch(within(t), rows)...))
	own := b.sink(kgo.ProducerBatchMaxBytes(100_000)).PublishBatch(within(t), rows)
	complains(t, own[1], outbox.ErrRefused.Error(), "kgo.ProducerBatchMaxBytes, which is 100000")
	must(t, errors.Join(own[0], own[2]))
}

// One row whose topic is missing neither stops the others nor takes long.
func TestBadRowsDoNotStopTheGoodOnes(t *testing.T) {
	t.Parallel()
	b := newBench(t, 2)
	_, err := b.admin.CreateTopic(within(t), 1, 1, map[string]*string{"cleanup.policy": kadm.StringPtr("compact")}, b.topic+"-compact")
	must(t, err)
	b.awaitTopic(b.topic + "-compact")
	rows := rowsFor(b.topic, 10)
	rows[2].Topic, rows[4].Topic, rows[6].Topic, rows[8].Topic = "missing-"+b.topic, "no topic", b.topic+"-compact", b.topic+"-compact"
	rows[6].OrderingKey = nil
	rows[8].Payload = nil // a tombstone
	sink := b.sink()
	begun := time.Now()
	for i, err := range sink.PublishBatch(within(t), rows) {
		switch i {
		case 2:
			complains(t, err, "missing-"+b.topic, "does not exist", "kafka-topics.sh", "--create")
			if errors.Is(err, outbox.ErrRefused) || errors.Is(err, outbox.ErrUnavailable) {
				t.Errorf("a missing topic: %v", err)
			}
		case 4:
			complains(t, err, "no topic", "letters", outbox.ErrRefused.Error())
		case 6:
			complains(t, err, "key", outbox.ErrRefused.Error(), outbox.OrderingKeyMetadata)
		default:
			if err != nil {
				t.Errorf("row %d: %v", i, err)
			}
		}
	}
	if took := time.Since(begun); took > patience/4 {
		t.Errorf("it took %v", took)
	}
	// A topic that is made later is found.
	b.createTopic("missing-"+b.topic, 1)
	until(t, "the row is published", func() bool { return sink.PublishBatch(within(t), rows[2:3])[0] == nil })
}

// A topic that is deleted and made again is another one, to which the client has
// to find anew.
func TestTheSinkFollowsATopicThatIsMadeAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	sink := b.sink()
	must(t, errors.Join(sink.PublishBatch(within(t), rowsFor(b.topic, 10))...))
	b.recreate(1)
	var last error
	until(t, "rows are published to the new topic", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		last = errors.Join(sink.PublishBatch(ctx, rowsFor(b.topic, 10))...)
		if errors.Is(last, outbox.ErrRefused) {
			t.Fatalf("refused for good: %v", last)
		}
		return last == nil
	}, func() string { return fmt.Sprint(last) })
	if n := b.stored(); n < 10 {
		t.Errorf("%d records are in the new topic", n)
	}
}

func TestTheSinkSaysInTimeThatTheBrokerIsAway(t *testing.T) {
	t.Parallel()
	server := ownKafka(t)
	b := benchOn(t, []string{server.Broker()}, 2)
	sink := b.sink()
	must(t, errors.Join(sink.PublishBatch(within(t), rowsFor(b.topic, 10))...))
	away := func(timeout time.Duration) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		begun := time.Now()
		for i, err := range sink.PublishBatch(ctx, rowsFor(b.topic, 100)) {
			if !errors.Is(err, outbox.ErrUnavailable) || errors.Is(err, outbox.ErrRefused) {
				t.Fatalf("row %d: %v", i, err)
			}
		}
		if took := time.Since(begun); took > timeout+2*time.Second {
			t.Errorf("it took %v with a limit of %v", took, timeout)
		}
	}
	must(t, server.Freeze())
	for range 3 {
		away(500 * time.Millisecond)
	}
	must(t, server.Kill())
	away(time.Second)
	must(t, server.Start(within(t)))
	var last error
	until(t, "rows are published again", func() bool {
		last = errors.Join(sink.PublishBatch(within(t), rowsFor(b.topic, 100))...)
		return last == nil
	}, func() string { return fmt.Sprint(last) })
	// What was given up while the broker was frozen may have been stored, but is
	// not sent once more by the client itself after that.
	if n := b.stored(); n < 110 || n > 510 {
		t.Errorf("%d records are stored", n)
	}
}

func TestWrongClientsAreRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	msg := func() *message.Message { return message.NewMessage("u", nil) }
	for _, test := range map[string]struct {
		client *kgo.Client
		words  string
	}{
		"none":           {nil, "Client is nil"},
		"not idempotent": {b.connect(kgo.DisableIdempotentWrite(), kgo.RequiredAcks(kgo.LeaderAck())), "kgo.DisableIdempotentWrite"},
		"transactional":  {b.connect(kgo.TransactionalID("t")), "kgo.TransactionalID"},
		"regex":          {b.connect(kgo.ConsumeRegex()), "kgo.ConsumeRegex"},
		"never flushing": {b.connect(kgo.ManualFlushing()), "kgo.ManualFlushing"},
		"one topic":      {b.connect(kgo.DefaultProduceTopic("other"), kgo.DefaultProduceTopicAlways()), "kgo.DefaultProduceTopicAlways"},
		"hooks":          {b.connect(kgo.WithHooks(new(onceHook))), "kgo.WithHooks"},
		"next protocol":  {b.connect(kgo.ServerSideBalancer()), "kgo.ServerSideBalancer"},
		"consuming":      {b.connect(kgo.ConsumeTopics(b.topic)), "kgo.ConsumeTopics"},
	} {
		complains(t, (&kafka.Publisher{Client: test.client}).Publish(b.topic, msg()), "Publisher", test.words)
		sink := &kafka.Sink{Client: test.client}
		complains(t, sink.Check(within(t)), "Sink", test.words)
		complains(t, sink.PublishBatch(within(t), rowsFor(b.topic, 1))[0], "Sink", test.words, outbox.ErrUnavailable.Error())
	}
	publisher := &kafka.Publisher{Client: b.client, Timeout: -1}
	complains(t, publisher.Publish(b.topic, msg()), "Publisher.Timeout is -1ns")
	publisher = &kafka.Publisher{Client: b.client}
	complains(t, publisher.Publish("a b", msg()), `topic "a b"`)
	complains(t, publisher.Publish("missing", msg()), "does not exist")
	must(t, publisher.Publish(b.topic))
	must(t, publisher.Close())
	if err := publisher.Publish(b.topic, msg()); !errors.Is(err, kafka.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestBrokersThatCannotBeReachedAreNamed(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	nobody, err := kgo.NewClient(kgo.SeedBrokers("127.0.0.1:1"))
	must(t, err)
	defer nobody.Close()
	s := b.subscriber("g")
	s.Client = nobody
	_, err = s.Subscribe(within(t), b.topic)
	complains(t, err, "127.0.0.1:1", "cannot connect to brokers", "kgo.SeedBrokers")
	publisher := &kafka.Publisher{Client: nobody, Timeout: time.Second}
	defer publisher.Close()
	err = publisher.Publish(b.topic, message.NewMessage("u", nil))
	complains(t, err, "127.0.0.1:1", "cannot connect to brokers", outbox.ErrUnavailable.Error())
}

// The brokers refuse a batch that is larger than a segment, but not its rows.
func TestABatchLargerThanASegmentIsSplit(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	for name, value := range map[string]string{"segment.bytes": "1048576", "max.message.bytes": "20000000"} {
		_, err := b.admin.AlterTopicConfigs(within(t), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: name, Value: &value}}, b.topic)
		must(t, err)
	}
	rows := rowsFor(b.topic, 60)
	for i := range rows {
		rows[i].Payload = make([]byte, 50_000)
	}
	refused := 0
	sink := b.sink(kgo.ProducerBatchMaxBytes(10_000_000), kgo.ProducerBatchCompression(kgo.NoCompression()))
	for _, err := range sink.PublishBatch(within(t), rows) {
		if errors.Is(err, outbox.ErrRefused) {
			refused++
		}
	}
	if refused > 0 {
		t.Errorf("%d good rows of %d are refused", refused, len(rows))
	}
}

// Small messages that are published at the same time share a batch, which the
// broker refuses; none of them is too large.
func TestMessagesThatArePublishedAtTheSameTimeAreJudgedAlone(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	publisher := &kafka.Publisher{Client: b.connect(kgo.ProducerBatchCompression(kgo.NoCompression()))}
	defer publisher.Close()
	must(t, publisher.Publish(b.topic, message.NewMessage("u", nil)))
	b.limit(2000) // of which the client does not know
	var all sync.WaitGroup
	var mu sync.Mutex
	refused := 0
	for range 50 {
		all.Go(func() {
			for range 20 {
				err := publisher.Publish(b.topic, message.NewMessage("u", make([]byte, 600)))
				if errors.Is(err, outbox.ErrRefused) {
					mu.Lock()
					refused++
					mu.Unlock()
				}
			}
		})
	}
	all.Wait()
	if refused > 0 {
		t.Errorf("%d of 1000 messages of 600 bytes are refused, with a limit of 2000", refused)
	}
}

// With a record that is refused, all are that wait for the same partition, also
// those of another batch.
func TestARowThatIsTooLargeIsNotHeldAgainstAnotherBatch(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	sink := b.sink(kgo.ProducerBatchCompression(kgo.NoCompression()))
	must(t, sink.PublishBatch(within(t), rowsFor(b.topic, 1))[0])
	b.limit(300_000) // of which the client does not know
	var all sync.WaitGroup
	var mu sync.Mutex
	refused := 0
	for i := range 2 {
		all.Go(func() {
			for range 50 {
				rows := rowsFor(b.topic, 20)
				if i == 0 {
					rows[10].Payload = make([]byte, 400_000)
				}
				for j, err := range sink.PublishBatch(within(t), rows) {
					if (i == 1 || j != 10) && errors.Is(err, outbox.ErrRefused) {
						mu.Lock()
						refused++
						mu.Unlock()
					}
				}
			}
		})
	}
	all.Wait()
	if refused > 0 {
		t.Errorf("%d good rows are refused", refused)
	}
}

// What other callers have given up is not held against a message.
func TestAPublishThatIsGivenUpDoesNotFailOthers(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	publisher := &kafka.Publisher{Client: b.connect()}
	defer publisher.Close()
	must(t, publisher.Publish(b.topic, message.NewMessage("u", nil)))
	var all sync.WaitGroup
	var mu sync.Mutex
	failed := 0
	var last error
	for i := range 20 {
		all.Go(func() {
			for n := range 100 {
				msg := message.NewMessage("u", make([]byte, 100))
				if i == 0 {
					ctx, cancel := context.WithTimeout(context.Background(), time.Duration(n)*20*time.Microsecond)
					msg.SetContext(ctx)
					_ = publisher.Publish(b.topic, msg)
					cancel()
					continue
				}
				if err := publisher.Publish(b.topic, msg); err != nil {
					mu.Lock()
					failed++
					last = err
					mu.Unlock()
				}
			}
		})
	}
	all.Wait()
	if failed > 0 {
		t.Errorf("%d of 1900 messages failed, with 10 s of time each: %v", failed, last)
	}
}

func TestAWrongClockIsNotTheRowsFault(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	value := "0"
	_, err := b.admin.AlterTopicConfigs(within(t), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "message.timestamp.before.max.ms", Value: &value}}, b.topic)
	must(t, err)
	for i, err := range b.sink().PublishBatch(within(t), rowsFor(b.topic, 3)) {
		if errors.Is(err, outbox.ErrRefused) {
			t.Errorf("row %d is refused for good: %v", i, err)
		}
	}
}

// A handler that passes its metadata on passes on the dedup id of what it has
// received.
func TestTheDedupIDIsTheRows(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	rows := rowsFor(b.topic, 1)
	rows[0].Metadata = map[string]string{outbox.DedupMetadata: "of another row"}
	must(t, b.sink().PublishBatch(within(t), rows)[0])
	msg := receive(t, b.subscribe(b.subscriber("g")))
	if got := msg.Metadata[outbox.DedupMetadata]; got != rows[0].DedupID {
		t.Errorf("dedup id %q, want %q; metadata %v", got, rows[0].DedupID, msg.Metadata)
	}
	msg.Ack()
}

// kgo's metrics plugins register with a registry when a client is made, and panic
// at the second one.
type onceHook struct{ clients int }

func (h *onceHook) OnNewClient(*kgo.Client) {
	if h.clients++; h.clients > 1 {
		panic("duplicate metrics collector registration attempted")
	}
}

// A record that is given up while it is judged alone is not held against the next.
func TestAGivenUpRecordIsNotHeldAgainstTheNextThatIsAlone(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	b.limit(300_000)
	publisher := &kafka.Publisher{Client: b.connect(kgo.ProducerBatchCompression(kgo.NoCompression()))}
	defer publisher.Close()
	must(t, publisher.Publish(b.topic, message.NewMessage("u", nil)))
	var all sync.WaitGroup
	var mu sync.Mutex
	refused := 0
	var last error
	stop := time.Now().Add(4 * time.Second)
	for i := range 12 {
		all.Go(func() {
			for n := 0; time.Now().Before(stop); n++ {
				if i < 2 {
					msg := message.NewMessage("large", make([]byte, 400_000))
					ctx, cancel := context.WithTimeout(context.Background(), time.Duration(n%40)*time.Millisecond)
					msg.SetContext(ctx)
					_ = publisher.Publish(b.topic, msg)
					cancel()
					continue
				}
				if err := publisher.Publish(b.topic, message.NewMessage("small", make([]byte, 100))); errors.Is(err, outbox.ErrRefused) {
					mu.Lock()
					refused++
					last = err
					mu.Unlock()
				}
			}
		})
	}
	all.Wait()
	if refused > 0 {
		t.Errorf("%d messages of 100 bytes are refused for good: %v", refused, last)
	}
}

// A slowWriter is a hook that has the client rest after each batch that it has sent,
// as the scheduler may.
type slowWriter struct{}

func (slowWriter) OnBrokerWrite(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, _ error) {
	if key == 0 {
		time.Sleep(5 * time.Millisecond)
	}
}

// A row is refused while the next batch of its partition waits to be written. The
// client then writes an empty one, which Kafka never answers, and the partition
// stands still until the client gives the answer up. Nothing else may fail for that.
func TestARefusalDoesNotFailWhatIsSentMeanwhile(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	b.limit(300_000)
	sink := b.sink(kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.WithHooks(slowWriter{}))
	must(t, sink.PublishBatch(within(t), rowsFor(b.topic, 1))[0])
	var all sync.WaitGroup
	var mu sync.Mutex
	var failed []error
	for i := range 5 {
		all.Go(func() {
			for n := range 10 {
				if i == 0 && n == 1 {
					break
				}
				rows := rowsFor(b.topic, 20)
				if i == 0 {
					rows[10].Payload = make([]byte, 400_000)
				}
				for j, err := range sink.PublishBatch(within(t), rows) {
					if err != nil && (i > 0 || j != 10) {
						mu.Lock()
						failed = append(failed, err)
						mu.Unlock()
					}
				}
			}
		})
	}
	all.Wait()
	if len(failed) > 0 {
		t.Errorf("%d good rows have failed, the first with %v", len(failed), failed[0])
	}
}
