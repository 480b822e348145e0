package webhook_test

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/actor"
)

// A site is where events arrive: a database, a broker with a stream, and receivers, of
// which one gets the events.
type site struct {
	t        *testing.T
	postgres string // URL for receivers
	db       *sql.DB
	nc       *nats.Conn
	topic    string
	hire     func(nth int) role // the role of the n-th receiver, from 0
	current  *actor.Process
	hired    int
	client   *http.Client
	again    int // answers with 503
	sent     map[string]bool
}

func newSite(t *testing.T, database *testcontainers.Database) *site {
	t.Helper()
	s := &site{t: t, postgres: database.URL, db: database.DB, topic: "events-" + strings.ToLower(rand.Text()[:10]), sent: make(map[string]bool)}
	_, err := s.db.Exec(`CREATE TABLE handled (event text)`)
	must(t, err)
	s.nc, err = nats.Connect(testcontainers.NATS(t).URL)
	must(t, err)
	t.Cleanup(s.nc.Close)
	js, err := natsjs.New(s.nc)
	must(t, err)
	_, err = js.CreateStream(within(t), natsjs.StreamConfig{Name: s.topic, Subjects: []string{s.topic}})
	must(t, err)
	s.client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: limit}
	s.hire = func(int) role { return role{} }
	return s
}

// address returns where the receiver is, and hires another if it is dead.
func (s *site) address() string {
	s.t.Helper()
	if s.current == nil {
		r := s.hire(s.hired)
		r.Name, r.Postgres, r.Topic = fmt.Sprint("receiver ", s.hired), s.postgres, s.topic
		s.current = actor.Start(s.t, r.Name, roleVariable, r)
		s.hired++
	}
	return strings.TrimPrefix(s.current.Await("listening", 1), "listening ")
}

// attempt delivers an event, and returns the status, 0 if the receiver has died. Stripe
// signs each delivery anew, and counts in it.
func (s *site) attempt(id string, nth int) int {
	s.t.Helper()
	now := time.Now().Unix()
	body := fmt.Sprintf(`{"id": %q, "object": "event", "type": "invoice.paid", "livemode": true, "created": %d, "pending_webhooks": %d}`, id, now, nth)
	mac := hmac.New(sha256.New, []byte(secret))
	fmt.Fprintf(mac, "%d.%s", now, body)
	r, err := http.NewRequestWithContext(within(s.t), http.MethodPost, s.address(), strings.NewReader(body))
	must(s.t, err)
	r.Header.Set("Stripe-Signature", fmt.Sprintf("t=%d,v1=%s", now, hex.EncodeToString(mac.Sum(nil))))
	response, err := s.client.Do(r)
	if err != nil {
		s.current.AwaitDeath()
		s.current = nil
		return 0
	}
	response.Body.Close()
	return response.StatusCode
}

// deliver delivers n new events.
func (s *site) deliver(n int) {
	s.t.Helper()
	for range n {
		s.insist("evt_" + strings.ToLower(rand.Text()))
	}
}

// insist delivers an event until it is answered with 200, and then once more.
func (s *site) insist(id string) {
	s.t.Helper()
	s.sent[id] = true
	deadline := time.Now().Add(limit)
	for nth, answered := 0, 0; answered < 2; nth++ {
		if time.Now().After(deadline) {
			s.t.Fatalf("%s: never answered", id)
		}
		switch status := s.attempt(id, nth); {
		case status == http.StatusOK:
			answered++
		case status == http.StatusServiceUnavailable:
			s.again++
		case status != 0:
			s.t.Fatalf("%s: answered %d", id, status)
		}
	}
}

func (s *site) count(query string, args ...any) (n int) {
	s.t.Helper()
	must(s.t, s.db.QueryRow(query, args...).Scan(&n))
	return n
}

// balance wants every event to be stored once, and lets a relay and a worker have them,
// after which each is handled once.
func (s *site) balance() {
	s.t.Helper()
	for what, n := range map[string]int{
		"rows":            s.count(`SELECT count(*) FROM oncemill.outbox`),
		"events in rows":  s.count(`SELECT count(DISTINCT uuid) FROM oncemill.outbox`),
		"receiver claims": s.count(`SELECT count(*) FROM oncemill.claims WHERE consumer = 'webhook/stripe'`),
	} {
		if n != len(s.sent) {
			s.t.Errorf("%d %s, want %d", n, what, len(s.sent))
		}
	}
	s.work()
	for id := range s.sent {
		if n := s.count(`SELECT count(*) FROM handled WHERE event = $1`, id); n != 1 {
			s.t.Errorf("%s was handled %d times", id, n)
		}
	}
	if n := s.count(`SELECT count(*) FROM handled`); n != len(s.sent) {
		s.t.Errorf("%d effects, want %d", n, len(s.sent))
	}
}

// work runs a relay and a worker until the worker has had as many messages as were sent.
func (s *site) work() {
	s.t.Helper()
	handled := make(chan struct{}, 10*len(s.sent))
	inbox := &oncemill.Inbox{DB: s.db, Observer: &oncemill.Observer{
		Committed: func(context.Context, string, string, time.Duration) { handled <- struct{}{} },
	}}
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	must(s.t, err)
	must(s.t, consumers.Stack{Once: middleware.Once{Inbox: inbox}}.Apply(within(s.t), router))
	router.AddConsumerHandler("worker", s.topic, &jetstream.Subscriber{Conn: s.nc, Group: "worker"}, func(msg *message.Message) error {
		tx, _ := oncemill.TxFromContext(msg.Context())
		_, err := tx.ExecContext(msg.Context(), `INSERT INTO handled VALUES ($1)`, msg.UUID)
		return err
	})
	ctx, cancel := context.WithCancel(context.Background())
	relay := &outbox.Relay{DB: s.db, Sink: &jetstream.Sink{Conn: s.nc}}
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{router.Run, relay.Run} {
		wg.Go(func() {
			if err := run(ctx); err != nil {
				s.t.Error(err)
			}
		})
	}
	defer wg.Wait()
	defer cancel()
	for range s.sent {
		select {
		case <-handled:
		case <-within(s.t).Done():
			s.t.Fatal("not all events have reached the worker")
		}
	}
}
