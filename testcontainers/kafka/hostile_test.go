package kafka_test

import (
	"fmt"
	"log/slog"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oncemill/oncemill/consumers/kafka"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/hostile"
)

// uncompressed has sizes be what they are.
var uncompressed = kgo.ProducerBatchCompression(kgo.NoCompression())

// committedSoFar is committed, of a group that may not be there yet.
func (b *bench) committedSoFar(group string) int64 {
	offsets, err := b.admin.FetchOffsets(within(b.t), group+"-"+b.topic)
	if err != nil {
		return -1
	}
	o, _ := offsets.Lookup(b.topic, 0)
	return o.At
}

// newHostile returns a bench whose topic takes records of any time.
func newHostile(t *testing.T) *bench {
	t.Helper()
	b := newBench(t, 1)
	value := "9223372036854775807"
	_, err := b.admin.AlterTopicConfigs(within(t), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "message.timestamp.after.max.ms", Value: &value}}, b.topic)
	must(t, err)
	return b
}

// hostileRecord is a message as a foreign producer makes it.
func hostileRecord(topic string, m *hostile.Message) *kgo.Record {
	r := &kgo.Record{Topic: topic, Key: m.Key, Value: m.Payload, Timestamp: m.Time}
	if m.UUID != "" {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: kafka.UUIDHeader, Value: []byte(m.UUID)})
	}
	for _, h := range m.Headers {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: h.Name, Value: []byte(h.Value)})
	}
	return r
}

// arrived calls each with the dedup ids of all records of a topic.
func (b *bench) arrived(topic string, each func(dedupID string)) {
	b.t.Helper()
	ends, err := b.admin.ListEndOffsets(within(b.t), topic)
	must(b.t, err)
	end, _ := ends.Lookup(topic, 0)
	client := b.connect(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().AtStart()}}))
	for next := int64(0); next < end.Offset; {
		fetches := client.PollFetches(within(b.t))
		must(b.t, fetches.Err())
		fetches.EachRecord(func(r *kgo.Record) {
			next = r.Offset + 1
			for _, h := range r.Headers {
				if h.Key == outbox.DedupMetadata {
					each(string(h.Value))
				}
			}
		})
	}
}

// Whatever a foreign producer sends is handled once, is a dead letter or is refused when it
// is published, and the good message behind it, which has to wait for it, is handled. Then
// all letters are sent, or parked with the reason.
func TestWhateverComesFromKafkaIsAccountedFor(t *testing.T) {
	t.Parallel()
	for _, batch := range []int{1, 64} {
		t.Run(fmt.Sprintf("batches of %d", batch), func(t *testing.T) {
			t.Parallel()
			fromKafka(t, batch)
		})
	}
}

func fromKafka(t *testing.T, batch int) {
	b := newHostile(t)
	dead := b.topic + "-dead"
	b.createTopic(dead, 1)
	producer := b.connect(kgo.ProducerBatchMaxBytes(1_048_588), uncompressed)
	refused, places := make(hostile.Books), make(map[string]string)
	send := func(m *hostile.Message) {
		r, err := producer.ProduceSync(within(t), hostileRecord(b.topic, m)).First()
		if err != nil {
			refused.Enter(m.Name, hostile.Refused, err.Error())
			return
		}
		places[m.Name] = fmt.Sprint(r.Offset)
	}
	for i, m := range hostile.Messages {
		if m.Kafka != (hostile.Fate{}) {
			send(&m)
			good := hostile.GoodMessage(i)
			send(&good)
		}
	}
	subscriber := b.subscriber("g")
	subscriber.Logger = slog.New(slog.DiscardHandler)
	if batch > 1 {
		subscriber.Ahead = batch
	}
	c := &hostile.Consumer{DB: testcontainers.Postgres(t).DB, Topic: b.topic, DeadLetter: dead, Batch: batch, Subscriber: subscriber}
	all := int64(len(places))
	books := c.Run(t, func() bool { return b.committedSoFar("g") == all }, func() string { return fmt.Sprintf("%d of %d are committed", b.committedSoFar("g"), all) })
	d := &hostile.Dispatch{DB: c.DB, Sink: b.sink(uncompressed)}
	letters := d.Letters(t, c)
	d.Run(t)
	b.arrived(dead, func(dedupID string) { d.Arrived(t, dedupID) })
	for i, m := range hostile.Messages {
		if m.Kafka == (hostile.Fate{}) {
			continue
		}
		for _, one := range []hostile.Message{m, hostile.GoodMessage(i)} {
			refused[one.Name] = append(refused[one.Name], books[places[one.Name]]...)
			delete(books, places[one.Name])
			refused.Balance(t, one.Name, one.Kafka)
		}
		if m.Kafka.Ledger == hostile.Dead {
			d.Books.Balance(t, places[m.Name], hostile.Fate{Ledger: m.LetterOf().Ledger})
			delete(letters, places[m.Name])
		}
	}
	if len(books) > 0 || len(letters) > 0 {
		t.Errorf("nobody has sent %v or what the letters %v are of", books, letters)
	}
}

// Whatever SQL writes into the outbox is refused by the table, sent once, parked with the
// reason, or tried again; and the good row behind it is sent.
func TestWhateverSQLWritesForKafkaIsAccountedFor(t *testing.T) {
	t.Parallel()
	b := newHostile(t)
	d := &hostile.Dispatch{DB: testcontainers.Postgres(t).DB, Sink: b.sink(uncompressed), Topic: b.topic}
	d.InsertAll(t)
	d.Run(t)
	b.arrived(b.topic, func(dedupID string) { d.Arrived(t, dedupID) })
	d.Balance(t, func(r hostile.Row) hostile.Fate { return r.ToKafka })
}

// The same for whatever is given to an outbox.Publisher, which refuses what the table
// cannot hold.
func TestWhateverIsPublishedForKafkaIsAccountedFor(t *testing.T) {
	t.Parallel()
	b := newHostile(t)
	d := &hostile.Dispatch{DB: testcontainers.Postgres(t).DB, Sink: b.sink(uncompressed), Topic: b.topic}
	fate := func(m *hostile.Message) hostile.Fate { return m.ToKafka }
	d.PublishAll(t, fate)
	d.Run(t)
	b.arrived(b.topic, func(dedupID string) { d.Arrived(t, dedupID) })
	d.BalancePublished(t, fate)
}
