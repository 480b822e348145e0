package webhook_test

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/consumers/webhook"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"
)

// The whole way of an event: a receiver stores it, a relay publishes it, and a worker
// handles it, each of them once. They may be three programs.
func Example() {
	ctx := context.Background()
	var (
		db *sql.DB
		nc *nats.Conn
	)
	inbox := &oncemill.Inbox{DB: db}

	// The receiver.
	events := &webhook.Stripe{Inbox: inbox, Topic: "stripe", Secrets: []string{os.Getenv("STRIPE_WEBHOOK_SECRET")}}
	check(events.Check(ctx))
	mux := http.NewServeMux()
	mux.Handle("/webhooks/stripe", events)
	server := &http.Server{Addr: ":8080", Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second}
	go func() { check(server.ListenAndServe()) }()

	// The relay, and what forgets old claims.
	relay := &outbox.Relay{DB: db, Sink: &jetstream.Sink{Conn: nc}, ListenURL: os.Getenv("DATABASE_URL")}
	go func() { check(relay.Run(ctx)) }()
	go func() { check(inbox.Run(ctx)) }()

	// The worker. The message's UUID is the event's id, by which Once claims it.
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: 35 * time.Second}, watermill.NewSlogLogger(slog.Default()))
	check(err)
	check(consumers.Stack{Once: middleware.Once{Inbox: inbox}}.Apply(ctx, router))
	router.AddConsumerHandler("billing", "stripe", &jetstream.Subscriber{Conn: nc, Group: "billing"}, func(msg *message.Message) error {
		if msg.Metadata.Get(webhook.TypeMetadata) != "invoice.paid" {
			return nil
		}
		tx, _ := oncemill.TxFromContext(msg.Context())
		_, err := tx.ExecContext(msg.Context(), `INSERT INTO paid (event) VALUES ($1)`, string(msg.Payload))
		return err
	})
	check(router.Run(ctx))
}

// While a signing secret is rolled, both are good.
func ExampleStripe() {
	var db *sql.DB
	http.Handle("/webhooks/stripe", &webhook.Stripe{
		Inbox:        &oncemill.Inbox{DB: db},
		Topic:        "stripe",
		Secrets:      []string{os.Getenv("STRIPE_WEBHOOK_SECRET"), os.Getenv("STRIPE_WEBHOOK_SECRET_OLD")},
		ReplayWindow: 2 * time.Minute,
	})
}

// Replays are recognised for a year, whatever their headers say.
func ExampleGitHub() {
	var db *sql.DB
	http.Handle("/webhooks/github", &webhook.GitHub{
		Inbox:   &oncemill.Inbox{DB: db, Retention: 365 * 24 * time.Hour},
		Topic:   "github",
		Secrets: []string{os.Getenv("GITHUB_WEBHOOK_SECRET")},
		Key:     webhook.BySigned,
	})
}

// Twilio has to be given the same URL, with connection overrides that have it try again.
func ExampleTwilio() {
	var db *sql.DB
	http.Handle("/webhooks/twilio", &webhook.Twilio{
		Inbox:   &oncemill.Inbox{DB: db},
		Topic:   "twilio",
		Secrets: []string{os.Getenv("TWILIO_AUTH_TOKEN")},
		URL:     "https://example.com/webhooks/twilio#rc=5&rp=all",
	})
}

// Wrong configuration is found at start.
func ExampleGitHub_Check() {
	var db *sql.DB
	events := &webhook.GitHub{Inbox: &oncemill.Inbox{DB: db}, Topic: "github", Secrets: []string{""}}
	fmt.Println(events.Check(context.Background()))
	// Output: webhook: GitHub.Secrets[0] is empty: anybody could sign with it; leave it out
}

func ExampleBySigned() {
	key, err := webhook.BySigned(&webhook.Delivery{Provider: "github"})
	fmt.Println(len(key), err)
	// Output: 71 <nil>
}

// A key of one's own: the id of what the event is about, which is signed.
func ExampleKeyFunc() {
	var key webhook.KeyFunc = func(d *webhook.Delivery) (string, error) {
		sid := d.Form.Get("MessageSid")
		if sid == "" {
			return "", fmt.Errorf("no message")
		}
		return sid + ":" + d.Form.Get("MessageStatus"), nil
	}
	fmt.Println(key(&webhook.Delivery{Form: map[string][]string{"MessageSid": {"SM1"}, "MessageStatus": {"sent"}}}))
	// Output: SM1:sent <nil>
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
