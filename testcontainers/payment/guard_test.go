package payment_test

import (
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/consumers/payment"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/stripeserver"
)

// business is a whole consumer of payments: a broker, guarded handlers in two
// processes (as far as anybody can tell), a resolver and a relay.
type business struct {
	*shop
	db        *sql.DB
	nc        *nats.Conn
	topic     string
	keyLife   time.Duration
	landing   time.Duration
	publisher *jetstream.Publisher
	log       *testenv.Log
}

func newBusiness(t *testing.T, options stripeserver.Options) *business {
	t.Helper()
	database := testcontainers.Postgres(t)
	_, err := database.DB.Exec(`CREATE TABLE paid (key text, id text)`)
	must(t, err)
	nc, err := nats.Connect(testcontainers.NATS(t).URL, nats.MaxReconnects(-1))
	must(t, err)
	t.Cleanup(nc.Close)
	b := &business{
		shop: newShop(t, options), db: database.DB, nc: nc, topic: "orders-" + strings.ToLower(rand.Text()[:10]),
		keyLife: payment.StripeKeyLifetime, landing: 200 * time.Millisecond,
		publisher: &jetstream.Publisher{Conn: nc, MsgID: jetstream.TopicUUID}, log: &testenv.Log{},
	}
	js, err := natsjs.New(nc)
	must(t, err)
	_, err = js.CreateStream(within(t), natsjs.StreamConfig{Name: b.topic, Subjects: []string{b.topic}})
	must(t, err)
	return b
}

// open runs it all until the returned function is called.
func (b *business) open(workers int) (shut func()) {
	b.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	run := func(f func(context.Context) error) {
		all.Go(func() {
			if err := f(ctx); err != nil {
				b.t.Errorf("ended: %v", err)
			}
		})
	}
	for range workers {
		guard := b.guard()
		router, err := message.NewRouter(message.RouterConfig{CloseTimeout: time.Minute}, watermill.NopLogger{})
		must(b.t, err)
		subscriber := &jetstream.Subscriber{
			Conn: b.nc, Group: "payments", MaxInFlight: 16,
			NakDelay: func(n uint64) time.Duration { return min(time.Duration(n)*50*time.Millisecond, 500*time.Millisecond) },
		}
		charger := b.charger()
		router.AddHandler("payments", b.topic, subscriber, "receipts", guard.Publisher(), guard.Middleware(charger.Handle))
		run(router.Run)
		resolver := guard.Resolver()
		resolver.Poll, resolver.Backoff, resolver.MostBackoff = 100*time.Millisecond, 100*time.Millisecond, 500*time.Millisecond
		run(resolver.Run)
	}
	relay := &outbox.Relay{DB: b.db, Sink: &jetstream.Sink{Conn: b.nc}}
	run(relay.Run)
	return func() {
		cancel()
		all.Wait()
	}
}

func (b *business) charger() *payment.Charger {
	return &payment.Charger{Provider: b.Stripe, Timeout: 2 * time.Second, OnSettle: insertPaid}
}

func (b *business) guard() middleware.Guard {
	charger := b.charger()
	return middleware.Guard{
		Inbox: &oncemill.Inbox{DB: b.db, Logger: slog.New(slog.NewTextHandler(b.log, nil))}, Consumer: "payments", Lease: 5 * time.Second,
		KeyLifetime: b.keyLife, Ask: charger.Ask, LandingBound: b.landing, Describe: charger.Describe,
	}
}

// order publishes orders, each of them with n more copies.
func (b *business) order(from, to, copies int) {
	b.t.Helper()
	for i := from; i < to; i++ {
		method := "pm_card_visa"
		if i%10 == 9 {
			method = "pm_card_chargeDeclined"
		}
		for n := range 1 + copies {
			msg := message.NewMessage("order-"+strconv.Itoa(i), fmt.Appendf(nil, `{"amount": %d, "currency": "usd", "payment_method": %q}`, 1000+i, method))
			publisher := b.publisher
			if n > 0 { // the stream would drop the same id
				publisher = &jetstream.Publisher{Conn: b.nc}
			}
			must(b.t, publisher.Publish(b.topic, msg))
		}
	}
}

// settled waits until so many claims are.
func (b *business) settled(n int) {
	b.t.Helper()
	for end := time.Now().Add(90 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		var is int
		must(b.t, b.db.QueryRow(`SELECT count(*) FROM oncemill.claims WHERE settled_at IS NOT NULL`).Scan(&is))
		if is == n {
			return
		}
		if time.Now().After(end) {
			b.t.Fatalf("%d claims are settled, want %d: %s", is, n, b.unsettled())
		}
	}
}

func (b *business) unsettled() string {
	var text sql.NullString
	must(b.t, b.db.QueryRow(`SELECT string_agg(key || ' after ' || attempts || ' attempts: ' || COALESCE(reason, '-'), E'\n') FROM oncemill.claims WHERE settled_at IS NULL`).Scan(&text))
	return text.String
}

// audit compares what Stripe has done with what the claims say.
func (b *business) audit(orders int) {
	b.t.Helper()
	paid := map[string]string{}
	for _, e := range b.server.Ledger() {
		name := e.Metadata[payment.MetadataMessage]
		if paid[name] != "" {
			b.t.Errorf("%s was paid twice", name)
		}
		paid[name] = e.ID
	}
	rows, err := b.db.Query(`
		SELECT key, outcome, COALESCE(convert_from(result, 'UTF8')::json->>'id', ''), (SELECT COALESCE(string_agg(id, ','), '') FROM paid WHERE paid.key = c.key)
		FROM oncemill.claims c WHERE consumer = 'payments'`)
	must(b.t, err)
	defer rows.Close()
	claims := 0
	for rows.Next() {
		var name, outcome, result, row string
		must(b.t, rows.Scan(&name, &outcome, &result, &row))
		claims++
		if (outcome == "settled") != (paid[name] != "") || result != paid[name] || row != paid[name] {
			b.t.Errorf("%s is %s with %q and the row %q, but Stripe has %q", name, outcome, result, row, paid[name])
		}
		if declined := strings.HasSuffix(name, "9"); declined != (outcome == "failed") {
			b.t.Errorf("%s is %s", name, outcome)
		}
	}
	must(b.t, rows.Err())
	if text := b.log.String(); strings.Contains(text, stripeserver.DefaultAPIKey) || strings.Contains(text, "_secret_") {
		b.t.Errorf("the log tells a secret: %s", text)
	}
	if claims != orders {
		b.t.Errorf("%d claims, want %d", claims, orders)
	}
}

func TestPaymentsThroughAGuardAreMadeOnce(t *testing.T) {
	t.Parallel()
	const orders = 120
	faults := stripeserver.Random{Seed: 11, Rates: map[stripeserver.Fault]float64{
		stripeserver.CutBefore: 0.05, stripeserver.CutAfter: 0.15, stripeserver.ErrorAfter: 0.15, stripeserver.Gateway: 0.05,
		stripeserver.Unavailable: 0.05, stripeserver.RateLimit: 0.05, stripeserver.Forbidden: 0.02, stripeserver.HangAfter: 0.03,
	}}
	b := newBusiness(t, stripeserver.Options{Faults: faults.Choose})
	begin := time.Now()
	b.order(0, orders, 1)
	shut := b.open(2)
	b.settled(orders)
	took := time.Since(begin)
	b.order(0, orders, 1) // all of them once more
	b.order(orders, orders+10, 0)
	b.settled(orders + 10)
	shut()
	b.audit(orders + 10)
	var events string
	must(t, b.db.QueryRow(`SELECT string_agg(kind || ' ' || n, ', ' ORDER BY kind) FROM (SELECT kind, count(*) AS n FROM oncemill.events GROUP BY kind) e`).Scan(&events))
	t.Logf("%d orders in %v, %d requests; %s", orders, took.Round(time.Millisecond), len(b.server.Calls()), events)
}

// Stripe answers 500 and has made nothing, and repeats that for as long as it keeps
// the key, here for some seconds. The payment is made when it has forgotten it.
func TestAPaymentBehindAnEmpty500IsMadeWhenTheKeyIsForgotten(t *testing.T) {
	t.Parallel()
	faults := func(c stripeserver.Call) stripeserver.Fault {
		if c.Method == "POST" && c.Nth == 1 {
			return stripeserver.ErrorBefore
		}
		return stripeserver.None
	}
	b := newBusiness(t, stripeserver.Options{Faults: faults, KeyLifetime: 13 * time.Second})
	b.keyLife = 11 * time.Second // more than two leases
	shut := b.open(1)
	b.order(0, 1, 0)
	b.settled(1)
	shut()
	b.audit(1)
	if n := len(b.server.Ledger()); n != 1 {
		t.Errorf("paid %d times", n)
	}
}
