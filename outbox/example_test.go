package outbox_test

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"log"
	"os"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/internal/txn"
	"github.com/oncemill/oncemill/outbox"
)

// What the examples use; TestExamples sets it up.
var (
	exampleDB  *sql.DB
	exampleURL string
	broker     message.Publisher
)

// Examples need a server as tests do, but cannot be skipped: this runs them as
// tests, and compares what they print.
func TestExamples(t *testing.T) {
	testenv.NeedsSchema(t, 6)
	for name, test := range map[string]struct {
		example func()
		prints  string
	}{
		"Publisher":     {ExamplePublisher, "1 message in the outbox\n"},
		"InTx":          {ExampleInTx, "1 message in the outbox\n"},
		"Relay":         {ExampleRelay, "published to orders.paid: order 7\n<nil>\n"},
		"PublisherSink": {ExamplePublisherSink, "orders.paid with dedup id: true\n"},
		"Relay.Ready":   {ExampleRelay_Ready, "outbox: relay has not finished a round yet\n"},
		"sql":           {Example_sql, "published to orders.paid: {\"order\": 7}\n<nil>\n"},
		"DeliverIn":     {ExampleDeliverIn, "1 cancelled\n"},
		"Admin":         {ExampleAdmin, "7 orders.paid: message refused: too large\n1 to be tried again\n"},
		"orderingKey":   {Example_orderingKey, "order-7: paid\norder-7: sent\n<nil>\n"},
	} {
		exampleURL = testenv.PostgresURL(t)
		exampleDB = testenv.Open(t, exampleURL)
		if got := printed(t, test.example); got != test.prints {
			t.Errorf("%s printed\n%s\nwant\n%s", name, got, test.prints)
		}
	}
}

// printed returns what f writes to standard output.
func printed(t *testing.T, f func()) string {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout := os.Stdout
	os.Stdout = write
	defer func() { os.Stdout = stdout }()
	f()
	write.Close()
	text, err := io.ReadAll(read)
	if err != nil {
		t.Fatal(err)
	}
	read.Close()
	return string(text)
}

func printCount() {
	var n int
	_ = exampleDB.QueryRow(`SELECT count(*) FROM oncemill.outbox`).Scan(&n)
	fmt.Println(n, "message in the outbox")
}

// runHandler stands for middleware.Once, which puts the transaction into the
// context that a handler gets.
func runHandler(handler func(ctx context.Context) error) error {
	tx, err := exampleDB.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := handler(txn.With(context.Background(), &txn.Handle{Executor: tx})); err != nil {
		return err
	}
	return tx.Commit()
}

// In a handler, make messages with the handler's context: it carries the
// transaction.
func ExamplePublisher() {
	publisher := &outbox.Publisher{Notify: exampleDB} // one for the whole process

	err := runHandler(func(ctx context.Context) error {
		msg := message.NewMessageWithContext(ctx, "order-7", []byte("order 7"))
		return publisher.Publish("orders.paid", msg)
	})
	if err != nil {
		log.Fatal(err)
	}
	printCount()
}

// Code that begins its own transactions publishes with InTx.
func ExampleInTx() {
	tx, err := exampleDB.Begin()
	if err != nil {
		log.Fatal(err)
	}
	defer tx.Rollback()
	msg := message.NewMessage("order-7", []byte("order 7"))
	if err := outbox.InTx(tx).Publish("orders.paid", msg); err != nil {
		log.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		log.Fatal(err)
	}
	printCount()
}

// A printer is a Sink that prints. A real one is consumers/jetstream's.
type printer struct{ done func() }

func (p printer) PublishBatch(_ context.Context, rows []outbox.Row) []error {
	for _, row := range rows {
		fmt.Printf("published to %s: %s\n", row.Topic, row.Payload)
	}
	p.done()
	return make([]error, len(rows))
}

func ExampleRelay() {
	writer := &outbox.Publisher{DB: exampleDB, Notify: exampleDB}
	if err := writer.Publish("orders.paid", message.NewMessage("order-7", []byte("order 7"))); err != nil {
		log.Fatal(err)
	}

	ctx, stop := context.WithCancel(context.Background())
	relay := &outbox.Relay{
		DB:        exampleDB,
		Sink:      printer{done: stop}, // jetstream.Sink{JetStream: js} in earnest
		ListenURL: exampleURL,          // to be woken at once instead of polling each second
	}
	fmt.Println(relay.Run(ctx)) // until ctx ends
}

// Any Watermill publisher can be what a relay publishes to.
func ExamplePublisherSink() {
	ctx, stop := context.WithCancel(context.Background())
	broker = publisherFunc(func(topic string, msgs ...*message.Message) error {
		fmt.Println(topic, "with dedup id:", msgs[0].Metadata.Get("Nats-Msg-Id") != "")
		stop()
		return nil
	})
	writer := &outbox.Publisher{DB: exampleDB}
	if err := writer.Publish("orders.paid", message.NewMessage("order-7", nil)); err != nil {
		log.Fatal(err)
	}

	relay := &outbox.Relay{
		DB:   exampleDB,
		Sink: outbox.PublisherSink{Publisher: broker, DedupKey: "Nats-Msg-Id"},
	}
	if err := relay.Run(ctx); err != nil {
		log.Fatal(err)
	}
}

// Ready is made for readiness probes.
func ExampleRelay_Ready() {
	relay := &outbox.Relay{DB: exampleDB, Sink: printer{}}
	fmt.Println(relay.Ready()) // nil once relay.Run has made its first round
}

// Messages about one order go to one partition of a Kafka topic, one behind the
// other.
func Example_orderingKey() {
	paid := message.NewMessage(watermill.NewUUID(), []byte("paid"))
	sent := message.NewMessage(watermill.NewUUID(), []byte("sent"))
	for _, msg := range []*message.Message{paid, sent} {
		msg.Metadata.Set(outbox.OrderingKeyMetadata, "order-7")
	}
	if err := (&outbox.Publisher{DB: exampleDB}).Publish("orders", paid, sent); err != nil {
		log.Fatal(err)
	}

	ctx, stop := context.WithCancel(context.Background())
	sink := script(func(_ context.Context, rows []outbox.Row) []error { // kafka.Sink in earnest
		for _, row := range rows {
			fmt.Printf("%s: %s\n", row.OrderingKey, row.Payload)
		}
		stop()
		return make([]error, len(rows))
	})
	fmt.Println((&outbox.Relay{DB: exampleDB, Sink: sink}).Run(ctx))
}

// An INSERT from any language is a publisher.
func Example_sql() {
	_, err := exampleDB.Exec(`
		INSERT INTO oncemill.outbox (topic, metadata, payload)
		VALUES ('orders.paid', '{"tenant": "acme"}', convert_to('{"order": 7}', 'UTF8'))`)
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	relay := &outbox.Relay{DB: exampleDB, Sink: printer{done: stop}}
	fmt.Println(relay.Run(ctx))
}

func ExampleDeliverIn() {
	publisher := &outbox.Publisher{}
	err := runHandler(func(ctx context.Context) error {
		reminder := message.NewMessageWithContext(ctx, "reminder-7", []byte("order 7 is not paid yet"))
		outbox.DeliverIn(reminder, 36*time.Hour)
		return publisher.Publish("orders.reminder", reminder)
	})
	if err != nil {
		log.Fatal(err)
	}

	// The order is paid: a handler, or any other transaction, takes the reminder back.
	tx, err := exampleDB.Begin()
	if err != nil {
		log.Fatal(err)
	}
	defer tx.Rollback()
	n, err := publisher.Cancel(context.Background(), tx, "orders.reminder", "reminder-7")
	if err != nil {
		log.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		log.Fatal(err)
	}
	fmt.Println(n, "cancelled")
	// Prints: 1 cancelled
}

func ExampleAdmin() {
	exampleDB.Exec(`INSERT INTO oncemill.outbox (id, topic, parked_at, last_error) VALUES (7, 'orders.paid', now(), 'message refused: too large')`)

	admin := &outbox.Admin{DB: exampleDB}
	ctx := context.Background()
	tooLarge := outbox.Filter{Topic: "orders.*", Error: "too large"}
	for after := (outbox.Entry{}); ; {
		entries, err := admin.List(ctx, tooLarge, after, 100)
		if err != nil {
			log.Fatal(err)
		}
		if len(entries) == 0 {
			break
		}
		for _, e := range entries {
			fmt.Printf("%d %s: %s\n", e.ID, e.Topic, e.Error)
			after = e
		}
	}

	// Once the broker takes larger messages:
	changed, err := admin.Retry(ctx, tooLarge)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(changed.Rows, "to be tried again")
	// Prints:
	// 7 orders.paid: message refused: too large
	// 1 to be tried again
}
