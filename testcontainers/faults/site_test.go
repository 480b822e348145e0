package faults_test

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/testcontainers"

	"github.com/oncemill/oncemill/testcontainers/internal/actor"
	"github.com/oncemill/oncemill/testcontainers/internal/own"
)

// A site is where messages are handled: a database and a broker, with a stream
// of orders that the consumer billing bills, and one of its receipts.
type site struct {
	t        *testing.T
	postgres string // URL for workers and relays
	nats     string
	db       *sql.DB // the test's own, on the database
	nc       *nats.Conn
	js       natsjs.JetStream
	orders   string // name and subject of a stream
	receipts string
	sent     int // orders, numbered from 0
}

const billing, mailing = "billing", "mailing" // consumers

// newSite returns a site on servers that nobody kills.
func newSite(t *testing.T) *site {
	t.Helper()
	return siteOn(t, testcontainers.Postgres(t), testcontainers.NATS(t).URL)
}

// siteOn returns a site on given servers.
func siteOn(t *testing.T, database *testcontainers.Database, broker string) *site {
	t.Helper()
	id := strings.ToLower(rand.Text()[:10])
	s := &site{t: t, postgres: database.URL, nats: broker, db: database.DB, orders: "orders-" + id, receipts: "receipts-" + id}
	s.exec(`CREATE TABLE effects (handler text, key text, number integer, worker text)`)
	var err error
	s.nc, err = nats.Connect(broker, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	must(t, err)
	t.Cleanup(s.nc.Close)
	s.js, err = natsjs.New(s.nc)
	must(t, err)
	for _, name := range []string{s.orders, s.receipts} {
		s.stream(natsjs.StreamConfig{Name: name, Subjects: []string{name}})
	}
	return s
}

// servers is room for the Postgres servers that tests have of their own.
var servers = make(chan struct{}, 3)

// ownPostgres starts a Postgres server for one test.
func ownPostgres(t *testing.T) *testcontainers.PostgresServer {
	t.Helper()
	servers <- struct{}{}
	t.Cleanup(func() { <-servers })
	return own.Postgres(t, testcontainers.PostgresOptions{Volatile: true})
}

// stream creates a stream, or changes it.
func (s *site) stream(cfg natsjs.StreamConfig) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	_, err := s.js.CreateOrUpdateStream(ctx, cfg)
	must(s.t, err)
}

// stored returns how many messages a stream holds.
func (s *site) stored(stream string) int {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	found, err := s.js.Stream(ctx, stream)
	must(s.t, err)
	return int(found.CachedInfo().State.Msgs)
}

func (s *site) exec(statement string, args ...any) {
	s.t.Helper()
	_, err := s.db.Exec(statement, args...)
	must(s.t, err)
}

func (s *site) count(query string, args ...any) (n int) {
	s.t.Helper()
	if err := s.db.QueryRow(query, args...).Scan(&n); err != nil {
		s.t.Fatalf("%s: %v", query, err)
	}
	return n
}

func (s *site) effects(handler string) int {
	s.t.Helper()
	return s.count(`SELECT count(*) FROM effects WHERE handler = $1`, handler)
}

// worker returns the role of a worker that bills.
func (s *site) worker(name string) role {
	return role{
		Kind: "worker", Name: name, Postgres: s.postgres, NATS: s.nats,
		Handler: billing, Topic: s.orders, Receipts: s.receipts, MaxInFlight: 8,
	}
}

// mailer returns the role of a worker that handles the receipts.
func (s *site) mailer(name string) role {
	r := s.worker(name)
	r.Handler, r.Topic, r.Receipts = mailing, s.receipts, ""
	return r
}

func (s *site) relay(name string) role {
	return role{Kind: "relay", Name: name, Postgres: s.postgres, NATS: s.nats}
}

// order publishes n orders, and returns the key of the last one.
func (s *site) order(n int) (key string) {
	s.t.Helper()
	publisher := &jetstream.Publisher{Conn: s.nc, MsgID: jetstream.TopicUUID, Timeout: time.Second}
	for range n {
		key = watermill.NewUUID()
		must(s.t, s.orderOnce(publisher, key))
	}
	return key
}

// orderOnce publishes the next order until the broker has acknowledged it. One
// that is published twice under one id is stored once.
func (s *site) orderOnce(publisher message.Publisher, key string) error {
	deadline := time.Now().Add(limit)
	for {
		err := publisher.Publish(s.orders, message.NewMessage(key, []byte(strconv.Itoa(s.sent))))
		if err == nil {
			s.sent++
			return nil
		}
		if time.Now().After(deadline) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// load publishes orders, one every few milliseconds, until the returned function
// is called.
func (s *site) load(pause time.Duration) (stop func()) {
	quit, done := make(chan struct{}), make(chan error, 1)
	go func() {
		publisher := &jetstream.Publisher{Conn: s.nc, MsgID: jetstream.TopicUUID, Timeout: time.Second}
		tick := time.NewTicker(pause)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				done <- nil
				return
			case <-tick.C:
				if err := s.orderOnce(publisher, watermill.NewUUID()); err != nil {
					done <- err
					return
				}
			}
		}
	}()
	var stopped bool
	stop = func() {
		s.t.Helper()
		if !stopped {
			stopped = true
			close(quit)
			must(s.t, <-done)
		}
	}
	s.t.Cleanup(stop)
	return stop
}

// consumed waits until a consumer of Oncemill's subscriber has nothing left to
// deliver and nothing that is not acknowledged.
func (s *site) consumed(handler, stream string) {
	s.t.Helper()
	s.consumedBy(handler+"~"+stream, stream)
}

func (s *site) consumedBy(consumer, stream string) {
	s.t.Helper()
	var info *natsjs.ConsumerInfo
	var last uint64
	var err error
	eventually(s.t, consumer+" has nothing left", func() bool {
		// A consumer hears of a message a moment after its publisher.
		if last, err = s.last(stream); err != nil {
			return false
		}
		info, err = s.consumer(consumer, stream)
		return err == nil && info.Delivered.Stream >= last && info.NumPending == 0 && info.NumAckPending == 0
	}, func() string { return fmt.Sprintf("consumer: %+v, %v", info, err) })
}

// last returns the sequence of the last message in a stream whose subject is the
// stream's name.
func (s *site) last(stream string) (uint64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	found, err := s.js.Stream(ctx, stream)
	if err != nil {
		return 0, err
	}
	msg, err := found.GetLastMsgForSubject(ctx, stream)
	if err != nil {
		return 0, err
	}
	return msg.Sequence, nil
}

func (s *site) consumer(name, stream string) (*natsjs.ConsumerInfo, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	pull, err := s.js.Consumer(ctx, stream, name)
	if err == nil {
		return pull.CachedInfo(), nil
	}
	if !errors.Is(err, natsjs.ErrNotPullConsumer) {
		return nil, err
	}
	push, err := s.js.PushConsumer(ctx, stream, name) // watermill-nats has one
	if err != nil {
		return nil, err
	}
	return push.CachedInfo(), nil
}

// billed waits until every order is handled and acknowledged, stops the workers
// and wants the books to balance.
func (s *site) billed(workers ...*actor.Process) {
	s.t.Helper()
	s.consumed(billing, s.orders)
	for _, p := range workers {
		p.Stop()
	}
	s.balance(billing)
}

// balance wants each order to have had its effect once, in the name of a claim
// of its own, and none to have been given up.
func (s *site) balance(handler string) {
	s.t.Helper()
	for what, query := range map[string]string{
		"orders without an effect": `
			SELECT count(*) FROM generate_series(0, $2::integer - 1) AS ordered (number)
			WHERE NOT EXISTS (SELECT FROM effects WHERE handler = $1 AND effects.number = ordered.number)`,
		"orders with more than one effect": `
			SELECT count(*) FROM (SELECT FROM effects WHERE handler = $1 AND $2::integer >= 0 GROUP BY number HAVING count(*) > 1) AS twice`,
		"claims without an effect, or effects without a claim": `
			SELECT count(*) FROM (SELECT key FROM oncemill.claims WHERE consumer = $1 AND $2::integer >= 0) AS c
			FULL JOIN (SELECT key FROM effects WHERE handler = $1) AS e USING (key)
			WHERE c.key IS NULL OR e.key IS NULL`,
		"dead letters": `
			SELECT (SELECT count(*) FROM oncemill.claims WHERE consumer = $1 AND outcome <> 'settled' AND $2::integer >= 0)
				+ (SELECT count(*) FROM oncemill.outbox WHERE topic = 'dead-letter')`,
		"counted handler errors": `
			SELECT count(*) FROM oncemill.handler_errors WHERE consumer = $1 AND $2::integer >= 0`,
	} {
		if n := s.count(query, handler, s.sent); n != 0 {
			s.t.Errorf("%s: %d %s, of %d orders", handler, n, what, s.sent)
		}
	}
	if effects, claims := s.effects(handler), s.count(`SELECT count(*) FROM oncemill.claims WHERE consumer = $1`, handler); effects != s.sent || claims != s.sent {
		s.t.Errorf("%s: %d orders, %d effects, %d claims", handler, s.sent, effects, claims)
	}
}

// owed wants one receipt for each order to be in the outbox. It is for tests
// without a relay.
func (s *site) owed() {
	s.t.Helper()
	rows := s.count(`SELECT count(*) FROM oncemill.outbox WHERE topic = $1`, s.receipts)
	orders := s.count(`SELECT count(DISTINCT payload) FROM oncemill.outbox WHERE topic = $1`, s.receipts)
	if rows != s.sent || orders != s.sent {
		s.t.Errorf("%d receipts for %d different orders in the outbox, want %d", rows, orders, s.sent)
	}
}
