package faults_test

import (
	"testing"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/testcontainers"

	"github.com/oncemill/oncemill/testcontainers/internal/actor"
	"github.com/oncemill/oncemill/testcontainers/internal/own"
	"github.com/oncemill/oncemill/testcontainers/internal/proxy"
)

// README: the broker is away; rows stay in the outbox. It is killed with
// messages under way in both directions, and what it had acknowledged is there
// when it is back, since its process was killed and not the machine.
func TestNATSRestarts(t *testing.T) {
	t.Parallel()
	server := own.NATS(t, testcontainers.NATSOptions{})
	s := siteOn(t, testcontainers.Postgres(t), server.URL())
	others := "others-" + s.orders
	s.stream(natsjs.StreamConfig{Name: others, Subjects: []string{others}})
	worker := start(t, s.worker("worker"))
	relay := start(t, s.relay("relay"))
	mailer := start(t, s.mailer("mailer"))
	stop := s.load(5 * time.Millisecond)
	for range 2 {
		mailer.Await("committed", mailer.Times("committed")+50)
		must(t, server.Kill())
		s.exec(`INSERT INTO oncemill.outbox (topic) VALUES ($1)`, others)
		eventually(t, "the relay notices", func() bool { return relay.Logged("cannot go on") > relay.Logged("goes on") })
		must(t, server.Start(t.Context()))
	}
	mailer.Await("committed", mailer.Times("committed")+50)
	stop()
	s.consumed(billing, s.orders)
	s.outboxEmpty()
	s.consumed(mailing, s.receipts)
	for _, p := range []*actor.Process{relay, worker, mailer} {
		p.Stop()
	}
	s.balance(billing)
	s.balance(mailing)
	if stored := s.stored(others); stored != 2 {
		t.Errorf("%d messages from during the outages, want 2", stored)
	}
}

// Once works with any subscriber that delivers again what was not acknowledged:
// here with those of watermill-nats, under nacks and lost acks.
func TestStockWatermillNATSSubscriberWithOnce(t *testing.T) {
	t.Parallel()
	for subscriber, consumer := range map[string]string{
		"stock jetstream": "watermill__" + billing + "__", // and the topic
		"stock nats":      billing,
	} {
		t.Run(subscriber, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			if subscriber == "stock jetstream" {
				consumer += s.orders
				_, err := s.js.CreateConsumer(t.Context(), s.orders, natsjs.ConsumerConfig{
					Durable: consumer, AckPolicy: natsjs.AckExplicitPolicy, AckWait: ackWait,
				})
				must(t, err)
			}
			s.order(60)
			p, address := proxy.Through(t, s.nats, every(10, 1, "+ACK", proxy.TheRequest))
			r := s.worker("worker")
			r.NATS, r.Subscriber, r.FailEvery, r.MaxInFlight = address, subscriber, 5, 4
			worker := start(t, r)
			s.consumedBy(consumer, s.orders)
			worker.Kill() // its subscriber takes its time to close
			if p.Losses() != 1 || worker.Times("duplicate") == 0 {
				t.Errorf("%d acks were lost, and %d messages came again for it", p.Losses(), worker.Times("duplicate"))
			}
			if n := worker.Times("failed handler"); n < s.sent/5 {
				t.Errorf("%d runs failed, want at least %d", n, s.sent/5)
			}
			s.balance(billing)
			s.owed()
		})
	}
}
