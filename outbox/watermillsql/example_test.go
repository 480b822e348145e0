package watermillsql_test

import (
	"context"
	stdsql "database/sql"
	"fmt"
	"io"
	"log"
	"os"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox/watermillsql"
)

// exampleDB is the examples' database; TestExamples sets it up, with two messages of a
// forwarder in it.
var exampleDB *stdsql.DB

// Examples need a server as tests do, but cannot be skipped: this runs them as tests,
// and compares what they print.
func TestExamples(t *testing.T) {
	for name, test := range map[string]struct {
		example func()
		prints  string
	}{
		"Schema": {ExampleSchema, "1 in the outbox\n"},
		"Drain":  {ExampleDrain, "orders 2\n2 messages moved\n"},
	} {
		exampleDB = testenv.DB(t)
		o := newOld(t, exampleDB)
		o.subscribed("")
		o.publish("orders", 2)
		if got := printed(t, test.example); got != test.prints {
			t.Errorf("%s printed\n%s\nwant\n%s", name, got, test.prints)
		}
	}
}

// printed returns what f writes to standard output.
func printed(t *testing.T, f func()) string {
	t.Helper()
	read, write, err := os.Pipe()
	must(t, err)
	stdout := os.Stdout
	os.Stdout = write
	defer func() { os.Stdout = stdout }()
	f()
	write.Close()
	text, err := io.ReadAll(read)
	must(t, err)
	read.Close()
	return string(text)
}

// A program that publishes in its transaction changes the SchemaAdapter.
func ExampleSchema() {
	tx, err := exampleDB.Begin()
	if err != nil {
		log.Fatal(err)
	}
	defer tx.Rollback()
	publisher, err := sql.NewPublisher(tx, sql.PublisherConfig{SchemaAdapter: watermillsql.Schema{}}, watermill.NopLogger{})
	if err != nil {
		log.Fatal(err)
	}
	if err := publisher.Publish("orders", message.NewMessage(watermill.NewUUID(), []byte(`{"order": 7}`))); err != nil {
		log.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		log.Fatal(err)
	}
	var n int
	if err := exampleDB.QueryRow(`SELECT count(*) FROM oncemill.outbox`).Scan(&n); err != nil {
		log.Fatal(err)
	}
	fmt.Println(n, "in the outbox")
}

// What a forwarder has left goes to the outbox. With Follow it goes on for as long as
// old writers write.
func ExampleDrain() {
	drain := &watermillsql.Drain{DB: exampleDB, Topic: "events_to_forward", ConsumerGroup: ""}
	pending, err := drain.Pending(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	for topic, messages := range pending.Topics {
		fmt.Println(topic, messages)
	}
	done, err := drain.Run(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(done.Moved, "messages moved")
}
