package payment_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/consumers/payment"
	"github.com/oncemill/oncemill/middleware"
)

// A whole consumer of payments. A relay and Inbox.Run belong beside it, as in the
// program examples/hello.
func Example() {
	ctx := context.Background()
	var (
		db *sql.DB
		nc *nats.Conn
	)
	charger := &payment.Charger{Provider: &payment.Stripe{APIKey: os.Getenv("STRIPE_API_KEY")}}
	if err := charger.Check(ctx); err != nil {
		log.Fatal(err)
	}
	guard := middleware.Guard{
		Inbox:       &oncemill.Inbox{DB: db},
		Consumer:    "payments",
		Key:         middleware.ByMetadata("payment-id"), // a refund has one of its own
		Fingerprint: middleware.PayloadFingerprint,       // and is not made if it has not
		Lease:       time.Minute,
		Timeout:     payment.DefaultTimeout,

		KeyLifetime:  payment.StripeKeyLifetime,
		Ask:          charger.Ask,
		LandingBound: payment.StripeLandingBound,
		Describe:     charger.Describe,
	}
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: 35 * time.Second}, watermill.NewSlogLogger(slog.Default()))
	if err != nil {
		log.Fatal(err)
	}
	orders := &jetstream.Subscriber{Conn: nc, Group: "payments"}
	router.AddHandler("payments", "orders", orders, "receipts", guard.Publisher(), guard.Middleware(charger.Handle))
	go func() {
		if err := guard.Resolver().Run(ctx); err != nil {
			log.Fatal(err)
		}
	}()
	if err := router.Run(ctx); err != nil {
		log.Fatal(err)
	}
}

// A receipt is published if the payment was made, and a notice if it was refused.
func ExampleCharger_Charge() {
	charger := &payment.Charger{Provider: &payment.Stripe{APIKey: "sk_test_..."}}
	handle := func(msg *message.Message) ([]*message.Message, error) {
		receipt, err := charger.Charge(msg)
		if oncemill.VerdictOf(err) == oncemill.Never {
			refused := message.NewMessage(watermill.NewUUID(), []byte(err.Error()))
			return []*message.Message{refused}, err // published when the claim has failed
		}
		if err != nil {
			return nil, err
		}
		payload, err := json.Marshal(receipt)
		return []*message.Message{message.NewMessage(watermill.NewUUID(), payload)}, err
	}
	_, err := handle(message.NewMessage("1", nil)) // not behind a guard
	fmt.Println(err)
	// Output: no claim in the context: is middleware.Guard on the router?
}

// An order's message has more in it than a payment, and the order is marked as paid in
// the transaction that settles the claim.
func ExampleCharger_configure() {
	charger := &payment.Charger{
		Provider: &payment.Stripe{APIKey: os.Getenv("STRIPE_API_KEY"), MostAmount: 500_000},
		Timeout:  20 * time.Second,
		Decode: func(msg *message.Message) (payment.Request, error) {
			var order struct {
				ID, Customer, Card string
				Cents              int64
			}
			if err := json.Unmarshal(msg.Payload, &order); err != nil {
				return payment.Request{}, &payment.InputError{Field: "payload", Reason: "is no order: " + err.Error()}
			}
			return payment.Request{
				Amount: order.Cents, Currency: "eur", Customer: order.Customer, PaymentMethod: order.Card,
				Description: "Order " + order.ID, Metadata: map[string]string{"order": order.ID},
			}, nil
		},
		OnSettle: func(ctx context.Context, tx oncemill.Tx, key string, r payment.Receipt) error {
			_, err := tx.ExecContext(ctx, `UPDATE orders SET paid_by = $2 WHERE id = $1`, key, r.ID)
			return err
		},
	}
	_ = charger
}

func ExampleDecodeJSON() {
	_, err := payment.DecodeJSON(message.NewMessage("1", []byte(`{"amount": 10.50, "currency": "usd"}`)))
	fmt.Println(err)
	fmt.Println(oncemill.VerdictOf(err))
	// Output:
	// payment: amount is 10.50: must be a whole number of the currency's smallest unit, such as 1050 for 10.50 USD
	// never
}

func ExampleStripe_Find() {
	stripe := &payment.Stripe{APIKey: os.Getenv("STRIPE_API_KEY")}
	receipt, err := stripe.Find(context.Background(), payment.Search{
		Key:  oncemill.ProviderKey("payments", "order-7"),
		From: time.Now().Add(-24 * time.Hour), To: time.Now(),
	})
	switch {
	case err == nil:
		fmt.Println("paid:", receipt.ID)
	case errors.Is(err, payment.ErrNotFound):
		fmt.Println("not paid")
	}
}

func ExampleFinal() {
	err := payment.Final(errors.New("card declined"))
	fmt.Println(oncemill.VerdictOf(err))
	// Output: never
}

func ExampleDecimal() {
	fmt.Println(payment.Decimal(1050, "usd"), payment.Decimal(1050, "jpy"), payment.Decimal(1050, "kwd"))
	// Output: 10.50 1050 1.050
}
