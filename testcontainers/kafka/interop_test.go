package kafka_test

import (
	"context"
	"maps"
	"testing"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	stock "github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/consumers/kafka"
	"github.com/oncemill/oncemill/outbox"
)

func greeting() *message.Message {
	msg := message.NewMessage(watermill.NewUUID(), []byte("hello"))
	msg.Metadata.Set("tenant", "acme")
	msg.Metadata.Set("correlation_id", "1-2-3")
	return msg
}

func same(t *testing.T, got, want *message.Message) {
	t.Helper()
	if got.UUID != want.UUID || string(got.Payload) != string(want.Payload) || !maps.Equal(got.Metadata, want.Metadata) {
		t.Errorf("got %q %q %v, want %q %q %v", got.UUID, got.Payload, got.Metadata, want.UUID, want.Payload, want.Metadata)
	}
	got.Ack()
}

func TestWatermillKafkaCanBeRead(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	messages := b.subscribe(b.subscriber("g"))
	byTenant := func(_ string, msg *message.Message) (string, error) { return msg.Metadata.Get("tenant"), nil }
	for name, marshaler := range map[string]stock.Marshaler{
		"without keys": stock.DefaultMarshaler{},
		"with keys":    stock.NewWithPartitioningMarshaler(byTenant),
	} {
		publisher, err := stock.NewPublisher(stock.PublisherConfig{Brokers: b.seeds, Marshaler: marshaler}, watermill.NopLogger{})
		must(t, err)
		msg := greeting()
		must(t, publisher.Publish(b.topic, msg))
		must(t, publisher.Close())
		got := receive(t, messages)
		if name == "with keys" {
			msg.Metadata.Set(outbox.OrderingKeyMetadata, "acme")
		}
		same(t, got, msg)
	}
}

func TestWatermillKafkaCanReadOurs(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	config := stock.DefaultSaramaSubscriberConfig()
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	subscriber, err := stock.NewSubscriber(stock.SubscriberConfig{
		Brokers: b.seeds, Unmarshaler: stock.DefaultMarshaler{}, OverwriteSaramaConfig: config, ConsumerGroup: "theirs-" + b.topic,
	}, watermill.NopLogger{})
	must(t, err)
	defer subscriber.Close()
	messages, err := subscriber.Subscribe(context.Background(), b.topic)
	must(t, err)

	publisher := &kafka.Publisher{Client: b.client}
	defer publisher.Close()
	msg := greeting()
	must(t, publisher.Publish(b.topic, msg))
	same(t, receive(t, messages), msg)

	keyed := greeting()
	keyed.Metadata.Set(outbox.OrderingKeyMetadata, "acme")
	must(t, publisher.Publish(b.topic, keyed))
	got := receive(t, messages)
	if key, _ := stock.MessageKeyFromCtx(got.Context()); string(key) != "acme" {
		t.Errorf("the key is %q", key)
	}
	delete(keyed.Metadata, outbox.OrderingKeyMetadata) // it is the key, not a header
	same(t, got, keyed)

	sink := &kafka.Sink{Client: b.client}
	defer sink.Close()
	msg = greeting()
	row := outbox.Row{DedupID: "dedup-1", Topic: b.topic, UUID: msg.UUID, Metadata: maps.Clone(msg.Metadata), Payload: msg.Payload, OrderingKey: []byte("7")}
	must(t, sink.PublishBatch(within(t), []outbox.Row{row})[0])
	got = receive(t, messages)
	if key, _ := stock.MessageKeyFromCtx(got.Context()); string(key) != "7" {
		t.Errorf("the key is %q", key)
	}
	msg.Metadata.Set(outbox.DedupMetadata, "dedup-1")
	same(t, got, msg)
}

// What our publisher sends, our subscriber receives: any bytes, several values of
// a header, keys, tombstones.
func TestWhatIsPublishedIsReceived(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	messages := b.subscribe(b.subscriber("g"))
	publisher := &kafka.Publisher{Client: b.client}
	defer publisher.Close()
	tombstone := message.NewMessage("", nil)
	tombstone.Metadata.Set(outbox.OrderingKeyMetadata, "key\x00\xff")
	several := greeting()
	several.Metadata.Set("h", "1")
	several.Metadata.Set("h#2", "2")
	several.Metadata.Set("h#3", "")
	several.Metadata.Set("binary\xff", "\x00\xff\r\n")
	for _, msg := range []*message.Message{tombstone, several, message.NewMessage("", []byte{}), message.NewMessage("u", make([]byte, 900_000))} {
		must(t, publisher.Publish(b.topic, msg))
		got := receive(t, messages)
		if (got.Payload == nil) != (msg.Payload == nil) {
			t.Errorf("the payload is %v, was %v", got.Payload, msg.Payload)
		}
		if msg == several {
			if d, _ := kafka.FromContext(got.Context()); len(d.Headers) != 7 {
				t.Errorf("headers %v", d.Headers)
			}
		}
		same(t, got, msg)
	}
}
