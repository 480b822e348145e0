package brokerorders_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/payment"
	"github.com/oncemill/oncemill/examples/brokerorders"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/testcontainers"
)

// The broker answers 503 and has not placed the order; it is asked, the order is sent
// again, and refused. Another one is placed behind a 503, and found.
func TestOrdersBehindA503(t *testing.T) {
	t.Parallel()
	server, provider := start(t, brokerorders.Options{})
	server.Script(oncemill.ProviderKey("trading", "refused"), brokerorders.Unavailable, brokerorders.Reject)
	server.Script(oncemill.ProviderKey("trading", "placed"), brokerorders.UnavailableAfter)
	db := testcontainers.Postgres(t).DB
	charger := &payment.Charger{Provider: provider}
	guard := middleware.Guard{
		Inbox: &oncemill.Inbox{DB: db}, Consumer: "trading", Lease: 5 * time.Second,
		Ask: charger.Ask, LandingBound: 100 * time.Millisecond, Backoff: 50 * time.Millisecond, Describe: charger.Describe,
	}
	channel := gochannel.NewGoChannel(gochannel.Config{Persistent: true}, watermill.NopLogger{})
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	must(t, err)
	router.AddHandler("trading", "orders", channel, "placed", guard.Publisher(), guard.Middleware(charger.Handle))
	resolver := guard.Resolver()
	resolver.Poll = 50 * time.Millisecond
	relay := &outbox.Relay{DB: db, Sink: &outbox.PublisherSink{Publisher: channel}}

	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for _, run := range []func(context.Context) error{router.Run, resolver.Run, relay.Run} {
		all.Go(func() {
			if err := run(ctx); err != nil {
				t.Errorf("ended: %v", err)
			}
		})
	}
	for _, key := range []string{"refused", "placed", "simple"} {
		payload := `{"kind": "buy", "amount": 45200, "currency": "usd", "metadata": {"symbol": "AAPL", "quantity": "2"}}`
		must(t, channel.Publish("orders", message.NewMessage(key, []byte(payload))))
	}
	outcomes := settled(t, guard, 3)
	cancel()
	all.Wait()
	must(t, channel.Close())
	if outcomes["refused"] != "failed" || outcomes["placed"] != "settled" || outcomes["simple"] != "settled" {
		t.Errorf("got %v", outcomes)
	}
	if n := server.Requests(oncemill.ProviderKey("trading", "refused")); n != 2 {
		t.Errorf("the order that was refused was sent %d times, want 2", n)
	}
	if n := server.Requests(oncemill.ProviderKey("trading", "placed")); n != 1 {
		t.Errorf("the order behind a 503 was sent %d times, want 1", n)
	}
	if n := len(server.Ledger()); n != 2 {
		t.Errorf("%d orders were placed, want 2", n)
	}
}

// settled waits until n claims are, and returns their outcomes.
func settled(t *testing.T, guard middleware.Guard, n int) map[string]string {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		rows, err := guard.Inbox.DB.Query(`SELECT key, outcome FROM oncemill.claims WHERE settled_at IS NOT NULL`)
		must(t, err)
		outcomes := map[string]string{}
		for rows.Next() {
			var key, outcome string
			must(t, rows.Scan(&key, &outcome))
			outcomes[key] = outcome
		}
		must(t, rows.Err())
		if len(outcomes) == n {
			return outcomes
		}
		if time.Now().After(end) {
			t.Fatalf("settled are only %v", outcomes)
		}
	}
}
