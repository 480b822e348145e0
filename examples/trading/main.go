// Trading is a worker that places orders at a securities broker and keeps the
// positions that come of them.
//
// An order may be sent twice by two bots, its broker may answer 503 or not at all, and
// the worker may die at any moment. Still each order is placed once, and a position
// changes in the same transaction that settles the claim of its order. So there is no
// phantom: every order ends settled, failed or released, or is in doubt for everybody
// to see, and an entry that waits says for which.
//
//	go run ./trading -broker 127.0.0.1:7070    # a broker to try it with; it prints what follows
//	oncemill migrate --database-url "$DATABASE_URL"
//	nats stream add DESK --subjects orders,dead-letter --defaults
//	DATABASE_URL=postgres://... NATS_URL=nats://... BROKER_URL=http://... BROKER_TOKEN=... go run ./trading
//	nats pub orders '{"id": "order:TQQQ:buy:6", "purpose": "entry", "side": "buy", "symbol": "TQQQ", "quantity": "6", "cents": 45200}'
//
// Read desk.go, which has the handler, and positions.go, which has the rows.
package main

import (
	"context"
	"database/sql"
	"flag"
	"log"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	_ "github.com/lib/pq"
	"github.com/nats-io/nats.go"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/consumers/payment"
	"github.com/oncemill/oncemill/examples/brokerorders"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"
)

// timeout is how long the broker may take, and landing how long after that an order may
// still appear there: its API places an order before it answers.
const (
	timeout = 10 * time.Second
	landing = 2 * time.Second
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	broker := flag.String("broker", "", "serve a broker to try this with at an `address`, and nothing else")
	if flag.Parse(); *broker != "" {
		check(serveBroker(ctx, *broker))
		return
	}
	db := must(sql.Open("postgres", os.Getenv("DATABASE_URL")))
	db.SetMaxOpenConns(32)
	db.SetMaxIdleConns(32)
	check(createTables(ctx, db))
	nc := must(nats.Connect(os.Getenv("NATS_URL"), nats.MaxReconnects(-1)))
	inbox := &oncemill.Inbox{DB: db}

	d := &desk{db: db, inbox: inbox, charger: payment.Charger{
		Provider: &brokerorders.Provider{
			URL: os.Getenv("BROKER_URL"), Token: os.Getenv("BROKER_TOKEN"), Client: &http.Client{Timeout: timeout},
		},
		Timeout: timeout,
		Decode:  request,
	}}
	check(d.charger.Check(ctx))
	guard := middleware.Guard{
		Inbox: inbox, Consumer: consumer, Key: middleware.ByJSON("id"), Fingerprint: middleware.PayloadFingerprint,
		Lease: 30 * time.Second, Timeout: timeout,
		Ask: d.ask, LandingBound: landing, // the broker can be asked, but does not answer a second time as it did the first
		Probe:    d.charger.Check,
		Describe: d.charger.Describe,
	}
	router := must(message.NewRouter(message.RouterConfig{CloseTimeout: 35 * time.Second}, watermill.NewSlogLogger(slog.Default())))
	check(consumers.Stack{Guard: &guard, MaxErrors: consumers.Never}.Apply(ctx, router))
	router.AddConsumerHandler(consumer, "orders", &jetstream.Subscriber{Conn: nc, Group: consumer}, d.place)

	// What did not happen goes back to its topic through the outbox.
	relay := &outbox.Relay{DB: db, Sink: &jetstream.Sink{Conn: nc}, ListenURL: os.Getenv("DATABASE_URL")}
	go func() { check(relay.Run(ctx)) }()
	go func() { check(guard.Resolver().Run(ctx)) }()
	go func() { check(inbox.Run(ctx)) }()
	check(router.Run(ctx))
}

func must[T any](value T, err error) T {
	check(err)
	return value
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
