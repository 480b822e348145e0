package effects_test

import (
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/testcontainers"

	"github.com/oncemill/oncemill/testcontainers/internal/actor"
	"github.com/oncemill/oncemill/testcontainers/internal/own"
)

// A site is where effects are made: a database, a broker with a stream of orders and one
// of receipts, and a provider.
type site struct {
	t        *testing.T
	policy   policy
	provider *provider
	postgres string // URL for workers
	nats     string
	db       *sql.DB // the test's own
	inbox    *oncemill.Inbox
	nc       *nats.Conn
	js       natsjs.JetStream
	orders   string // name and subject of a stream
	receipts string
	sent     []string // keys of the orders, which are the messages' UUIDs
	relaying bool     // there is a relay
}

// newSite returns a site on servers that nobody kills.
func newSite(t *testing.T, p policy) *site {
	t.Helper()
	return siteOn(t, p, testcontainers.Postgres(t))
}

// siteOn returns a site on a given database.
func siteOn(t *testing.T, p policy, database *testcontainers.Database) *site {
	t.Helper()
	id := strings.ToLower(rand.Text()[:10])
	s := &site{
		t: t, policy: p, provider: newProvider(t, p), postgres: database.URL, nats: testcontainers.NATS(t).URL, db: database.DB,
		orders: "orders-" + id, receipts: "receipts-" + id,
	}
	s.inbox = &oncemill.Inbox{DB: s.db}
	s.exec(`CREATE TABLE receipts (key text, receipt text, worker text)`) // without a unique constraint
	var err error
	s.nc, err = nats.Connect(s.nats, nats.MaxReconnects(-1))
	must(t, err)
	t.Cleanup(s.nc.Close)
	s.js, err = natsjs.New(s.nc)
	must(t, err)
	for _, name := range []string{s.orders, s.receipts} {
		_, err := s.js.CreateStream(within(t), natsjs.StreamConfig{Name: name, Subjects: []string{name}})
		must(t, err)
	}
	return s
}

// ownPostgres starts a Postgres server for one test.
func ownPostgres(t *testing.T) *testcontainers.PostgresServer {
	t.Helper()
	return own.Postgres(t, testcontainers.PostgresOptions{Volatile: true})
}

// worker returns the role of a worker.
func (s *site) worker(name string) role {
	r := role{
		Kind: "worker", Name: name, Postgres: s.postgres, NATS: s.nats, Provider: s.provider.url(), Policy: s.policy,
		Topic: s.orders, Receipts: s.receipts, MaxInFlight: 8, MaxErrors: consumers.Never, Lease: 1500 * time.Millisecond,
		LandingBound: landing + 100*time.Millisecond, AskTimeout: time.Second,
	}
	if s.policy == idempotent {
		r.KeyLifetime = time.Hour
	}
	return r
}

func (s *site) resolver(name string) role {
	r := s.worker(name)
	r.Kind = "resolver"
	return r
}

// frozen starts a worker or a resolver, gives it an order, and waits until it has frozen
// itself at a step.
func (s *site) frozen(r role, at fault) (p *actor.Process, key string) {
	s.t.Helper()
	r.Fault = at
	p = start(s.t, r)
	key = s.order(1)
	p.Await("freezing", 1)
	return p, key
}

func (s *site) relay() *actor.Process {
	s.t.Helper()
	s.relaying = true
	return start(s.t, role{Kind: "relay", Name: "relay", Postgres: s.postgres, NATS: s.nats})
}

// order publishes n orders and returns the key of the last one.
func (s *site) order(n int) (key string) {
	s.t.Helper()
	publisher := &jetstream.Publisher{Conn: s.nc}
	for range n {
		number := fmt.Sprintf("%05d", len(s.sent))
		key = "order-" + number
		msg := message.NewMessage(key, []byte(number))
		msg.Metadata.Set("desk", "tech")
		must(s.t, publisher.Publish(s.orders, msg))
		s.sent = append(s.sent, key)
	}
	return key
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

// counts is count for conditions that may be looked at while Postgres is away.
func (s *site) counts(query string, args ...any) func() bool {
	return func() bool {
		var n int
		return s.db.QueryRow(query, args...).Scan(&n) == nil && n > 0
	}
}

// events returns how many events of a kind there are.
func (s *site) events(kind oncemill.EventKind) int {
	s.t.Helper()
	return s.count(`SELECT count(*) FROM oncemill.events WHERE kind = $1`, string(kind))
}

// awaitEvents waits until a key has n events of a kind.
func (s *site) awaitEvents(key string, kind oncemill.EventKind, n int) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("%s: %d events %q", key, n, kind),
		s.counts(`SELECT CASE WHEN count(*) >= $3 THEN 1 ELSE 0 END FROM oncemill.events WHERE key = $1 AND kind = $2`, key, string(kind), n),
		func() string { return s.history(key) })
}

// history is what happened to a key, for people.
func (s *site) history(key string) string {
	events, err := s.inbox.Consumer(consumer).Events(context.Background(), key, 0, 100)
	if err != nil {
		return err.Error()
	}
	text := key
	for _, e := range events {
		text += fmt.Sprintf("\n\t%s %s token %d by %s: %s", e.At.Format("05.000"), e.Kind, e.Token, e.Actor, e.Note)
	}
	return text
}

// drained waits until nothing is under way any more: nothing with the broker, nothing to
// be relayed and, unless that waits for a person, nothing in doubt.
func (s *site) drained() {
	s.t.Helper()
	waiting := `SELECT count(*) FROM oncemill.outbox WHERE topic = $1`
	if s.policy != opaque {
		waiting = `SELECT (` + waiting + `) + (SELECT count(*) FROM oncemill.claims WHERE settled_at IS NULL)`
	}
	var state string
	eventually(s.t, "nothing is under way", func() bool {
		before, last, ok := s.consumed()
		var n int
		err := s.db.QueryRow(waiting, s.orders).Scan(&n)
		_, again, still := s.consumed()
		state = fmt.Sprintf("consumer %s; %d in doubt or in the outbox, %v", before, n, err)
		return err == nil && ok && still && last == again && n == 0
	}, func() string { return state + "\n" + s.unsettled() })
}

// unsettled tells of some of the claims that are not settled.
func (s *site) unsettled() (text string) {
	var keys []string
	rows, err := s.db.Query(`SELECT key FROM oncemill.claims WHERE settled_at IS NULL LIMIT 3`)
	if err != nil {
		return err.Error()
	}
	defer rows.Close()
	for rows.Next() {
		var key string
		if rows.Scan(&key) == nil {
			keys = append(keys, key)
		}
	}
	for _, key := range keys {
		text += s.history(key) + "\n"
	}
	return text
}

// consumed reports whether the broker has nothing left to deliver and nothing that is
// not acknowledged, and what the last message was.
func (s *site) consumed() (state string, last uint64, ok bool) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	stream, err := s.js.Stream(ctx, s.orders)
	if err != nil {
		return err.Error(), 0, false
	}
	last = stream.CachedInfo().State.LastSeq
	pull, err := s.js.Consumer(ctx, s.orders, consumer+"~"+s.orders)
	if err != nil {
		return err.Error(), last, false
	}
	info := pull.CachedInfo()
	return fmt.Sprintf("%+v", info), last, info.Delivered.Stream >= last && info.NumPending == 0 && info.NumAckPending == 0
}
