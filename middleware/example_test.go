package middleware_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"
)

// exampleDB is the database that the examples run on.
var exampleDB *sql.DB

// Examples need a server as tests do, so this runs them as tests.
func TestExamples(t *testing.T) {
	exampleDB = testenv.DB(t)
	_, err := exampleDB.Exec(`CREATE TABLE payments (order_id text)`)
	must(t, err)
	for _, example := range []func(){
		ExampleOnce, ExampleOnce_router, ExampleGuard, ExampleByJSON, ExampleByMetadata, ExampleByPosition, ExamplePayloadFingerprint,
	} {
		example()
	}
	var payments int
	must(t, exampleDB.QueryRow(`SELECT count(*) FROM payments`).Scan(&payments))
	if payments != 1 {
		t.Errorf("%d payments, want 1", payments)
	}
}

func pay(msg *message.Message) ([]*message.Message, error) {
	tx, _ := oncemill.TxFromContext(msg.Context())
	_, err := tx.ExecContext(msg.Context(), `INSERT INTO payments VALUES ($1)`, string(msg.Payload))
	return nil, err
}

func ExampleOnce() {
	once := middleware.Once{Inbox: &oncemill.Inbox{DB: exampleDB}, Consumer: "billing"}
	handle := once.Middleware(pay)
	for range 2 { // the message is delivered twice
		_, err := handle(message.NewMessage("order-7", []byte("7")))
		if err != nil {
			fmt.Println(err)
		}
	}
}

// On a router, one Once serves all handlers: each claims in its own name.
func ExampleOnce_router() {
	router, err := message.NewRouter(message.RouterConfig{}, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	router.AddMiddleware(middleware.Once{Inbox: &oncemill.Inbox{DB: exampleDB}}.Middleware)

	var subscriber message.Subscriber // any
	router.AddHandler("billing", "orders", subscriber, "invoices", &outbox.Publisher{}, pay)
}

func ExampleByJSON() {
	key := middleware.ByJSON("order", "id")
	fmt.Println(key(message.NewMessage("", []byte(`{"order": {"id": 7}}`))))
	// Output: 7 <nil>
}

func ExampleByMetadata() {
	msg := message.NewMessage("", nil)
	msg.Metadata.Set("Idempotency-Key", "order-7")
	fmt.Println(middleware.ByMetadata("Idempotency-Key")(msg))
	// Output: order-7 <nil>
}

func ExampleByPosition() {
	_, err := middleware.ByPosition(message.NewMessage("", nil)) // from nowhere
	fmt.Println(errors.Is(err, oncemill.ErrNoKey))
	// Output: true
}

func ExamplePayloadFingerprint() {
	once := middleware.Once{
		Inbox:       &oncemill.Inbox{DB: exampleDB},
		Consumer:    "invoicing",
		Fingerprint: middleware.PayloadFingerprint,
	}
	handle := once.Middleware(func(*message.Message) ([]*message.Message, error) { return nil, nil })
	for _, payload := range []string{"pay 5 to alice", "pay 9 to bob"} {
		_, err := handle(message.NewMessage("order-7", []byte(payload)))
		fmt.Println(errors.Is(err, oncemill.ErrKeyReused)) // false, then true
	}
}

// A worker that charges cards at a provider that honours idempotency keys.
func ExampleGuard() {
	router, err := message.NewRouter(message.RouterConfig{}, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	guard := middleware.Guard{
		Inbox:       &oncemill.Inbox{DB: exampleDB},
		Consumer:    "payments",
		Key:         middleware.ByJSON("payment_id"),
		Fingerprint: middleware.PayloadFingerprint,
		Lease:       time.Minute,
		Timeout:     30 * time.Second, // the provider's
		KeyLifetime: 23 * time.Hour,
	}
	router.AddMiddleware(guard.Middleware)
	_ = func(msg *message.Message) error { // the handler
		claim, ok := oncemill.ClaimFromContext(msg.Context())
		if !ok {
			return oncemill.ErrNoClaim
		}
		receipt, err := charge(msg.Context(), claim.ProviderKey(), msg.Payload)
		if errors.Is(err, errDeclined) {
			return oncemill.NeverWill(err)
		}
		claim.SetResult(receipt)
		return err
	}
}

var errDeclined = errors.New("declined")

// charge stands for a provider's client.
func charge(context.Context, string, []byte) (receipt []byte, err error) { return nil, nil }
