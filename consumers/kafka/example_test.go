package kafka_test

import (
	"context"
	"crypto/tls"
	"database/sql"
	"fmt"
	"log"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/consumers/kafka"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"
)

func ExampleSubscriber() {
	client, err := kgo.NewClient(kgo.SeedBrokers("127.0.0.1:9092"))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	subscriber := &kafka.Subscriber{Client: client, Group: "billing"}
	router, err := message.NewRouter(message.RouterConfig{
		CloseTimeout: kafka.DefaultDrainTimeout + 5*time.Second,
	}, watermill.NewStdLogger(false, false))
	if err != nil {
		log.Fatal(err)
	}
	router.AddConsumerHandler("billing", "orders", subscriber, func(msg *message.Message) error {
		return nil // charge the customer
	})
	if err := router.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

// Sixteen customers of a partition are served at a time, the orders of each one
// after another. The topic is created with the first Subscribe.
func ExampleSubscriber_maxInFlight() {
	client, err := kgo.NewClient(
		kgo.SeedBrokers("kafka-1:9093", "kafka-2:9093"),
		kgo.DialTLSConfig(&tls.Config{MinVersion: tls.VersionTLS12}),
		kgo.SASL(scram.Auth{User: "billing", Pass: "secret"}.AsSha256Mechanism()),
		kgo.SessionTimeout(10*time.Second),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	subscriber := &kafka.Subscriber{
		Client:      client,
		Group:       "billing",
		MaxInFlight: 16,
		CreateTopic: func(string) kafka.TopicConfig {
			return kafka.TopicConfig{Partitions: 12, Replicas: 3}
		},
	}
	if err := subscriber.SubscribeInitialize("orders"); err != nil {
		log.Fatal(err)
	}
}

// Up to 64 messages of a few partitions are handled in one transaction, those of each
// partition in its order.
func ExampleSubscriber_ahead() {
	var db *sql.DB
	client, err := kgo.NewClient(kgo.SeedBrokers("127.0.0.1:9092"))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	router, err := message.NewRouter(message.RouterConfig{
		CloseTimeout: kafka.DefaultDrainTimeout + 5*time.Second,
	}, watermill.NewStdLogger(false, false))
	if err != nil {
		log.Fatal(err)
	}
	inbox := &oncemill.Inbox{DB: db, Batch: 64}
	stack := consumers.Stack{Once: middleware.Once{Inbox: inbox}}
	if err := stack.Apply(context.Background(), router); err != nil {
		log.Fatal(err)
	}
	subscriber := &kafka.Subscriber{Client: client, Group: "billing", Ahead: 2 * inbox.Batch}
	router.AddConsumerHandler("billing", "orders", subscriber, func(msg *message.Message) error {
		tx, _ := oncemill.TxFromContext(msg.Context())
		_, err := tx.ExecContext(msg.Context(), `INSERT INTO payments (order_id) VALUES ($1)`, string(msg.Payload))
		return err
	})
	if err := router.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

// The key is in the metadata.
func ExamplePublisher() {
	client, err := kgo.NewClient(kgo.SeedBrokers("127.0.0.1:9092"))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	publisher := &kafka.Publisher{Client: client}
	defer publisher.Close()
	msg := message.NewMessage(watermill.NewUUID(), []byte(`{"order": 7}`))
	msg.Metadata.Set(outbox.OrderingKeyMetadata, "customer-3")
	if err := publisher.Publish("orders", msg); err != nil {
		log.Fatal(err)
	}
}

func ExampleSink() {
	var db *sql.DB
	client, err := kgo.NewClient(kgo.SeedBrokers("127.0.0.1:9092"))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	sink := &kafka.Sink{Client: client}
	defer sink.Close()
	relay := &outbox.Relay{DB: db, Sink: sink}
	if err := relay.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func ExampleFromContext() {
	handle := func(msg *message.Message) error {
		if d, ok := kafka.FromContext(msg.Context()); ok {
			fmt.Println(d.Topic, d.Partition, d.Offset, string(d.Key))
		}
		return nil
	}
	_ = handle
}

// The producer has given each record a key that does not come again.
func ExampleByRecordKey() {
	once := middleware.Once{Key: kafka.ByRecordKey}
	_, err := once.Key(message.NewMessage("uuid", nil)) // it does not come from Kafka
	fmt.Println(err)
	// Output: no idempotency key: message "uuid" does not come from a kafka.Subscriber
}
