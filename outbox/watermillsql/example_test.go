package watermillsql_test

import (
	"context"
	stdsql "database/sql"
	"fmt"
	"log"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/outbox/watermillsql"
)

// A program that publishes in its transaction changes the SchemaAdapter.
func ExampleSchema() {
	_ = func(tx *stdsql.Tx) error {
		publisher, err := sql.NewPublisher(tx, sql.PublisherConfig{SchemaAdapter: watermillsql.Schema{}}, watermill.NopLogger{})
		if err != nil {
			return err
		}
		return publisher.Publish("orders", message.NewMessage(watermill.NewUUID(), []byte(`{"order": 7}`)))
	}
}

// What a forwarder has left goes to the outbox. With Follow it goes on for as long as
// old writers write.
func ExampleDrain() {
	_ = func(ctx context.Context, db *stdsql.DB) {
		drain := &watermillsql.Drain{DB: db, Topic: "events_to_forward", ConsumerGroup: ""}
		pending, err := drain.Pending(ctx)
		if err != nil {
			log.Fatal(err)
		}
		for topic, messages := range pending.Topics {
			fmt.Println(topic, messages)
		}
		done, err := drain.Run(ctx)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(done.Moved, "messages moved, up to", done.Position)
	}
}
