package jetstream_test

import (
	"context"
	"maps"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	wmjs "github.com/ThreeDotsLabs/watermill-nats/v2/pkg/jetstream"
	wmnats "github.com/ThreeDotsLabs/watermill-nats/v2/pkg/nats"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"

	"github.com/oncemill/oncemill/consumers/jetstream"
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

func TestWatermillNATSCanBeRead(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	messages := s.subscribe(s.subscriber("g"))
	headers, err := wmnats.NewPublisher(wmnats.PublisherConfig{
		URL: s.server.URL(), Marshaler: &wmnats.NATSMarshaler{},
		NatsOptions: []nats.Option{nats.MaxReconnects(-1)},
		JetStream:   wmnats.JetStreamConfig{Disabled: false},
	}, watermill.NopLogger{})
	must(t, err)
	defer headers.Close()
	simple, err := wmjs.NewPublisher(wmjs.PublisherConfig{URL: s.server.URL(), Logger: watermill.NopLogger{}})
	must(t, err)
	defer simple.Close()
	for _, publisher := range []message.Publisher{headers, simple} {
		msg := greeting()
		must(t, publisher.Publish("a", msg))
		got := receive(t, messages)
		delete(got.Metadata, nats.MsgIdHdr) // only theirs to set
		same(t, got, msg)
	}
}

func TestWatermillNATSCanReadOurs(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	subscriber, err := wmnats.NewSubscriber(wmnats.SubscriberConfig{
		URL: s.server.URL(), Unmarshaler: &wmnats.NATSMarshaler{},
		SubjectCalculator: wmnats.DefaultSubjectCalculator,
		JetStream:         wmnats.JetStreamConfig{DurablePrefix: "theirs"},
	}, watermill.NopLogger{})
	must(t, err)
	defer subscriber.Close()
	messages, err := subscriber.Subscribe(context.Background(), "a")
	must(t, err)

	msg := greeting()
	must(t, (&jetstream.Publisher{Conn: s.nc}).Publish("a", msg))
	same(t, receive(t, messages), msg)

	msg = greeting()
	row := outbox.Row{DedupID: "dedup-1", Topic: "a", UUID: msg.UUID, Metadata: msg.Metadata, Payload: msg.Payload}
	must(t, (&jetstream.Sink{Conn: s.nc}).PublishBatch(within(t), []outbox.Row{row})[0])
	same(t, receive(t, messages), msg)
}
