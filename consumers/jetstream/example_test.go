package jetstream_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/outbox"
)

func ExampleSubscriber() {
	nc, err := nats.Connect(nats.DefaultURL, nats.MaxReconnects(-1))
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	subscriber := &jetstream.Subscriber{Conn: nc, Group: "billing"}
	router, err := message.NewRouter(message.RouterConfig{
		CloseTimeout: jetstream.DefaultDrainTimeout + 5*time.Second,
	}, watermill.NewStdLogger(false, false))
	if err != nil {
		log.Fatal(err)
	}
	router.AddConsumerHandler("billing", "orders.created", subscriber, func(msg *message.Message) error {
		return nil // charge the customer
	})
	if err := router.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

// The stream is created with the first Subscribe, and the consumer may stay
// unused for a week.
func ExampleSubscriber_configure() {
	nc, err := nats.Connect(nats.DefaultURL, nats.MaxReconnects(-1))
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	subscriber := &jetstream.Subscriber{
		Conn:        nc,
		Group:       "billing",
		MaxInFlight: 1, // strict order
		CreateStream: func(topic string) natsjs.StreamConfig {
			return natsjs.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}, Replicas: 3}
		},
		Configure: func(cfg *natsjs.ConsumerConfig) {
			cfg.InactiveThreshold = 7 * 24 * time.Hour
		},
	}
	if err := subscriber.SubscribeInitialize("orders.created"); err != nil {
		log.Fatal(err)
	}
}

func ExamplePublisher() {
	nc, err := nats.Connect(nats.DefaultURL, nats.MaxReconnects(-1))
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	publisher := &jetstream.Publisher{Conn: nc, MsgID: jetstream.TopicUUID}
	msg := message.NewMessage(watermill.NewUUID(), []byte(`{"order": 7}`))
	if err := publisher.Publish("orders.created", msg); err != nil {
		log.Fatal(err)
	}
}

func ExampleSink() {
	nc, err := nats.Connect(nats.DefaultURL, nats.MaxReconnects(-1))
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	var sink outbox.Sink = &jetstream.Sink{Conn: nc} // for an outbox.Relay
	for _, err := range sink.PublishBatch(context.Background(), []outbox.Row{{
		DedupID: "5f0c2a4e-8f6f-4f5a-9d0e-3b1f5f3a7c11",
		Topic:   "invoices.created",
		UUID:    watermill.NewUUID(),
		Payload: []byte(`{"invoice": 7}`),
	}}) {
		if err != nil {
			log.Print(err)
		}
	}
}

func ExampleFromContext() {
	handle := func(msg *message.Message) error {
		if d, ok := jetstream.FromContext(msg.Context()); ok {
			fmt.Printf("%s %d, delivery %d\n", d.Stream, d.StreamSequence, d.Attempt)
		}
		return nil
	}
	_ = handle(message.NewMessage("1", nil)) // not from a Subscriber
	// Output:
}

func ExampleTopicUUID() {
	msg := message.NewMessage("8d1e", nil)
	fmt.Println(jetstream.TopicUUID("orders.created", msg))
	// Output: orders.created 8d1e
}
