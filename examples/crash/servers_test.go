package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/testcontainers/kafkaserver"
)

// What the checker believes of a broker is the same on each.
func TestTheServersOfEachBroker(t *testing.T) {
	if testing.Short() {
		t.Skip("starts servers: make test")
	}
	for name, start := range brokers {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			on, err := start(ctx, t.Output())
			if errors.Is(err, kafkaserver.ErrNoJava) && os.Getenv("ONCEMILL_TEST_REQUIRE_KAFKA") != "1" {
				t.Skip("needs Java 17 or later (Debian: openjdk-17-jre-headless)")
			}
			if err != nil {
				t.Fatal(err)
			}
			defer on.close()
			if err := on.createTopics(ctx, 0); err != nil {
				t.Fatal(err)
			}
			through, err := setting{Broker: name, Addresses: on.addresses()}.connect()
			if err != nil {
				t.Fatal(err)
			}
			defer through.close()
			t.Run("a message is pending until it is acknowledged", func(t *testing.T) { pendingUntilAcknowledged(ctx, t, on, through) })
			t.Run("a topic is read in the order of each key", func(t *testing.T) { readInOrder(ctx, t, on, through) })
			t.Run("a dead letter is read by the message that was given up", func(t *testing.T) { readByWhatWasGivenUp(ctx, t, on, through) })
		})
	}
}

func pendingUntilAcknowledged(ctx context.Context, t *testing.T, on servers, through broker) {
	var arriving <-chan *message.Message
	for _, topic := range slices.Concat(work, downstream) {
		subscriber := through.subscriber(groupOf(topic))
		messages, err := subscriber.Subscribe(ctx, topic)
		if err != nil {
			t.Fatal(err)
		}
		defer subscriber.Close()
		if topic == receipts {
			arriving = messages
		}
	}
	publish(ctx, t, through, outbox.Row{Topic: receipts, UUID: "first"}, outbox.Row{Topic: receipts, UUID: "second"})
	first, second := receiveOne(ctx, t, arriving), receiveOne(ctx, t, arriving)
	awaitPending(ctx, t, on, 2)
	first.Ack()
	second.Nack()
	second = receiveOne(ctx, t, arriving)
	if n, err := on.pending(ctx); n == 0 || err != nil {
		t.Errorf("%d messages are pending, %v", n, err)
	}
	second.Ack()
	awaitPending(ctx, t, on, 0)
}

func readInOrder(ctx context.Context, t *testing.T, on servers, through broker) {
	const keys, each = 20, 10
	var rows []outbox.Row
	for number := range each {
		for key := range keys {
			rows = append(rows, outbox.Row{Topic: ordered, UUID: fmt.Sprint(key, "-", number), OrderingKey: fmt.Append(nil, key)})
		}
	}
	publish(ctx, t, through, rows...)
	all, err := on.read(ctx, ordered)
	if err != nil || len(all) != len(rows) {
		t.Fatalf("%d messages are read, %v", len(all), err)
	}
	next := make(map[string]int)
	for _, d := range all {
		key, number, _ := strings.Cut(d.uuid, "-")
		if number != fmt.Sprint(next[key]) {
			t.Errorf("of key %s there is %s where %d should be", key, number, next[key])
		}
		next[key]++
	}
}

// A dead letter has a UUID of its own, by which nobody would know it.
func readByWhatWasGivenUp(ctx context.Context, t *testing.T, on servers, through broker) {
	letter := outbox.Row{Topic: deadLetters, UUID: watermill.NewUUID(), Metadata: message.Metadata{consumers.DeadUUID: oldUUID(3)}}
	publish(ctx, t, through, letter)
	all, err := on.read(ctx, deadLetters)
	if err != nil || len(all) != 1 || all[0].uuid != oldUUID(3) {
		t.Errorf("%+v is read, %v", all, err)
	}
}

// publish is a relay's: unlike a producer, it may take its time, and sends nothing twice.
func publish(ctx context.Context, t *testing.T, through broker, rows ...outbox.Row) {
	t.Helper()
	for i := range rows {
		rows[i].DedupID = watermill.NewUUID()
	}
	if err := errors.Join(through.sink().PublishBatch(ctx, rows)...); err != nil {
		t.Fatal(err)
	}
}

func receiveOne(ctx context.Context, t *testing.T, from <-chan *message.Message) *message.Message {
	t.Helper()
	select {
	case msg := <-from:
		return msg
	case <-ctx.Done():
		t.Fatal("no message arrives")
		return nil
	}
}

func awaitPending(ctx context.Context, t *testing.T, on servers, want int) {
	t.Helper()
	for {
		n, err := on.pending(ctx)
		if err == nil && n == want {
			return
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("%d messages are pending instead of %d, %v", n, want, err)
		}
	}
}
