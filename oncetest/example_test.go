package oncetest_test

import (
	"database/sql"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/oncetest"
	"github.com/oncemill/oncemill/outbox"
)

// bill is the handler of an order.
func bill(msg *message.Message) ([]*message.Message, error) {
	tx, _ := oncemill.TxFromContext(msg.Context())
	_, err := tx.ExecContext(msg.Context(), `INSERT INTO payments (account, order_id) VALUES ('alice', $1)`, string(msg.Payload))
	return []*message.Message{message.NewMessage(watermill.NewUUID(), msg.Payload)}, err
}

var (
	t  *testing.T // the test's
	db *sql.DB    // that of testcontainers.Postgres(t)
)

func ExampleHandle() {
	done := oncetest.Handle(t, db, bill, message.NewMessage("order-7", []byte("7")))
	var payments int
	err := done.Tx.QueryRow(`SELECT count(*) FROM payments WHERE order_id = '7'`).Scan(&payments)
	if done.Err != nil || err != nil || payments != 1 || len(done.Returned) != 1 {
		t.Errorf("%d payments, %d invoices, %v, %v", payments, len(done.Returned), done.Err, err)
	}
}

func ExampleCheck() {
	oncetest.Check(t, oncetest.Case{DB: db, Handler: bill, Message: message.NewMessage("order-7", []byte("7"))})
}

func ExampleConsumer() {
	handler := func(*message.Message) error { return nil } // as AddConsumerHandler takes it
	oncetest.Handle(t, db, oncetest.Consumer(handler), message.NewMessage("order-7", nil))
}

// A handler that was given the broker's publisher, and not an outbox.Publisher.
func ExampleBroker() {
	broker := &oncetest.Broker{}
	handler := func(publisher message.Publisher) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			return nil, publisher.Publish("invoices", message.NewMessageWithContext(msg.Context(), "", msg.Payload))
		}
	}
	oncetest.Check(t, oncetest.Case{
		DB: db, Handler: handler(broker), Message: message.NewMessage("order-7", []byte("7")),
		Outside: broker.Count, // which the check finds to be 2 where the process dies before its COMMIT
	})
	oncetest.Check(t, oncetest.Case{ // with this one it passes
		DB: db, Handler: handler(&outbox.Publisher{}), Message: message.NewMessage("order-7", []byte("7")),
	})
}

// Examples need a server as tests do, so this runs them as tests.
func TestExamples(real *testing.T) {
	db, t = database(real, "postgres"), real
	ExampleHandle()
	ExampleCheck()
	ExampleConsumer()
	reports := check(real, brokerCase())
	if len(reports) != 1 || !strings.Contains(reports[0], "outside of Postgres") {
		real.Errorf("of the example of Broker: %q", reports)
	}
}

func brokerCase() oncetest.Case {
	broker := &oncetest.Broker{}
	return oncetest.Case{DB: db, Message: message.NewMessage("order-7", nil), Outside: broker.Count, Handler: func(msg *message.Message) ([]*message.Message, error) {
		return nil, broker.Publish("invoices", message.NewMessageWithContext(msg.Context(), "", msg.Payload))
	}}
}
