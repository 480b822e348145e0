package email_test

import (
	"context"
	"database/sql"
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
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/consumers/email"
	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/middleware"
)

// A whole consumer of mails. A relay and Inbox.Run belong beside it, as in the program
// examples/hello.
func Example() {
	ctx := context.Background()
	var (
		db *sql.DB
		nc *nats.Conn
	)
	sender := &email.Sender{
		Addr:     "smtp.example.com:587",
		Username: "shop",
		Password: os.Getenv("SMTP_PASSWORD"),
		From:     "Shop <shop@example.com>",
	}
	if err := sender.Check(ctx); err != nil {
		log.Fatal(err)
	}
	defer sender.Close()
	guard := middleware.Guard{
		Inbox:   &oncemill.Inbox{DB: db},
		Key:     middleware.ByMetadata("order-id"),
		Lease:   time.Minute,
		Timeout: email.DefaultTimeout,
		Probe:   sender.Check,
	}
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: 35 * time.Second}, watermill.NewSlogLogger(slog.Default()))
	if err != nil {
		log.Fatal(err)
	}
	if err := (consumers.Stack{Guard: &guard}).Apply(ctx, router); err != nil {
		log.Fatal(err)
	}
	router.AddConsumerHandler("mails", "mails", &jetstream.Subscriber{Conn: nc, Group: "mails"}, sender.Consume)
	if err := router.Run(ctx); err != nil {
		log.Fatal(err)
	}
}

// A message about each mail that was sent, and about each that never will be.
func ExampleSender_Send() {
	sender := &email.Sender{Addr: "smtp.example.com:587", From: "shop@example.com"}
	handle := func(msg *message.Message) ([]*message.Message, error) {
		receipt, err := sender.Send(msg)
		var refused *email.ReplyError
		switch {
		case err == nil:
			return []*message.Message{message.NewMessage(watermill.NewUUID(), []byte("sent "+receipt.MessageID))}, nil
		case oncemill.VerdictOf(err) == oncemill.Never && errors.As(err, &refused):
			return []*message.Message{message.NewMessage(watermill.NewUUID(), []byte("refused: "+refused.Text))}, err
		}
		return nil, err
	}
	_, err := handle(message.NewMessage("1", []byte(`{}`))) // without a Guard
	fmt.Println(errors.Is(err, oncemill.ErrNoClaim))
	// Output: true
}

// Mails of one's own kind: the message says which template.
func ExampleSender_decode() {
	sender := &email.Sender{
		Addr: "smtp.example.com:587",
		From: "shop@example.com",
		Decode: func(msg *message.Message) (email.Mail, error) {
			to := msg.Metadata.Get("customer")
			if to == "" {
				return email.Mail{}, &email.InputError{Field: "customer", Reason: "is missing in the metadata"}
			}
			return email.Mail{To: []string{to}, Subject: "Order " + string(msg.Payload) + " is on its way", Text: "..."}, nil
		},
	}
	_, err := sender.Decode(message.NewMessage("1", []byte("7")))
	fmt.Println(err, "-", oncemill.VerdictOf(err))
	// Output: email: customer is missing in the metadata - never
}

// A copy too many is better than none: a mail of which nobody knows whether it was
// sent is sent again for an hour, with the same Message-ID.
func ExampleResend() {
	var db *sql.DB
	sender := &email.Sender{Addr: "smtp.example.com:587", From: "alarm@example.com", LostReply: email.Resend}
	guard := middleware.Guard{
		Inbox: &oncemill.Inbox{DB: db}, Consumer: "alarms",
		Timeout: email.DefaultTimeout, KeyLifetime: time.Hour,
	}
	handle := guard.Middleware(sender.Handle)
	_ = handle // what the router gets
}

func ExampleDecodeJSON() {
	m, err := email.DecodeJSON(message.NewMessage("1", []byte(`{"to": ["Ann <ann@example.com>"], "subject": "Order 7"}`)))
	fmt.Println(m.To[0], err)
	_, err = email.DecodeJSON(message.NewMessage("1", []byte(`{"to": "ann@example.com"}`)))
	fmt.Println(err)
	// Output:
	// Ann <ann@example.com> <nil>
	// email: to is a JSON string: must be a list of strings
}
