package jetstream_test

import (
	"context"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	wmjs "github.com/ThreeDotsLabs/watermill-nats/v2/pkg/jetstream"
	wmnats "github.com/ThreeDotsLabs/watermill-nats/v2/pkg/nats"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/testcontainers"
)

// A message that watermill-nats publishes, a handler passes on through the outbox, and
// watermill-nats receives, is the same message in the end: its UUID, its metadata, its
// payload. The relay adds the time of the row.
func TestWatermillNATSReadsWhatTheRelaySends(t *testing.T) {
	t.Parallel()
	s, database := newSite(t), testcontainers.Postgres(t)
	_, err := s.js.CreateStream(within(t), natsjs.StreamConfig{Name: "b", Subjects: []string{"b"}})
	must(t, err)
	relayTo(t, database, s)
	theirs := map[string]<-chan *message.Message{"pkg/nats": receiveWithNATS(t, s, "b"), "pkg/jetstream": receiveWithJetStream(t, s, "b")}

	publisher, err := wmnats.NewPublisher(wmnats.PublisherConfig{
		URL: s.server.URL(), Marshaler: &wmnats.NATSMarshaler{},
		JetStream: wmnats.JetStreamConfig{TrackMsgID: true},
	}, watermill.NopLogger{})
	must(t, err)
	defer publisher.Close()
	sent := greeting()
	sent.Metadata.Set("Mixed-case_Key.1", "ümläut =?")
	sent.Metadata.Set("empty", "")
	must(t, publisher.Publish("a", sent))

	got := receive(t, s.subscribe(s.subscriber("g")))
	must(t, (&outbox.Publisher{DB: database.DB, Notify: database.DB}).Publish("b", got.Copy()))
	got.Ack()
	for name, messages := range theirs {
		again := receive(t, messages)
		if again.Metadata.Get(outbox.OriginMetadata) == "" {
			t.Errorf("%s: no %s in %v", name, outbox.OriginMetadata, again.Metadata)
		}
		delete(again.Metadata, outbox.OriginMetadata)
		same(t, again, sent)
	}
}

func relayTo(t *testing.T, database *testcontainers.Database, s *site) {
	t.Helper()
	relay := &outbox.Relay{DB: database.DB, Sink: &jetstream.Sink{Conn: s.nc}, ListenURL: database.URL}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- relay.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		must(t, <-done)
	})
}

func receiveWithNATS(t *testing.T, s *site, topic string) <-chan *message.Message {
	t.Helper()
	subscriber, err := wmnats.NewSubscriber(wmnats.SubscriberConfig{
		URL: s.server.URL(), Unmarshaler: &wmnats.NATSMarshaler{},
		SubjectCalculator: wmnats.DefaultSubjectCalculator,
		JetStream:         wmnats.JetStreamConfig{DurablePrefix: "theirs"},
	}, watermill.NopLogger{})
	must(t, err)
	return received(t, subscriber, topic)
}

func receiveWithJetStream(t *testing.T, s *site, topic string) <-chan *message.Message {
	t.Helper()
	conn, err := nats.Connect(s.server.URL())
	must(t, err)
	subscriber, err := wmjs.NewSubscriber(wmjs.SubscriberConfig{Conn: conn, Logger: watermill.NopLogger{}})
	must(t, err)
	return received(t, subscriber, topic)
}

func received(t *testing.T, subscriber message.Subscriber, topic string) <-chan *message.Message {
	t.Helper()
	t.Cleanup(func() { must(t, subscriber.Close()) })
	messages, err := subscriber.Subscribe(context.Background(), topic)
	must(t, err)
	return messages
}
