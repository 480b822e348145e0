package outbox_test

import (
	"context"
	"fmt"

	"github.com/oncemill/oncemill/outbox"
)

func ExampleRouter() {
	named := func(name string) outbox.Sink { // jetstream.Sink, kafka.Sink ...
		return script(func(_ context.Context, rows []outbox.Row) []error {
			for _, row := range rows {
				fmt.Println(row.Topic, "goes to", name)
			}
			return make([]error, len(rows))
		})
	}
	router := &outbox.Router{
		Sinks: map[string]outbox.Sink{"nats": named("nats"), "kafka": named("kafka")},
		Routes: []outbox.Route{
			{Topics: "audit-*", Sink: "kafka"},
			{Topics: "orders.*", Sink: "nats"},
		},
	}
	// relay := &outbox.Relay{DB: db, Sink: router}
	for _, topic := range []string{"orders.eu.paid", "audit-logins", "invoices"} {
		if err := router.PublishBatch(context.Background(), []outbox.Row{{Topic: topic}})[0]; err != nil {
			fmt.Println(err)
		}
	}
	// Output:
	// orders.eu.paid goes to nats
	// audit-logins goes to kafka
	// message refused: no route for topic "invoices": add one to Router.Routes (with oncemill relay: --route 'invoices=SINK'), or a last one for all other topics ('*=SINK'), and have the row tried again
}
