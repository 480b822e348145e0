package ordered_test

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/actor"
	"github.com/oncemill/oncemill/testcontainers/internal/lot"
	"github.com/oncemill/oncemill/testcontainers/internal/own"
)

// A site is a database and a broker, and the processes between them.
type site struct {
	t        *testing.T
	seed     uint64
	load     load
	postgres string // URL
	nats     string
	db       *sql.DB
	js       natsjs.JetStream
	topic    string // name and subject of the stream

	broker *testcontainers.NATSServer     // nil: none that could be killed
	server *testcontainers.PostgresServer // the same

	timeout, backoff time.Duration // of relays
	poll             time.Duration
	calm             bool // and so on: see role
	steady           bool
	bare             bool
	relays           []*actor.Process // all that there were
	producers        []*actor.Process
}

// newSite returns a site on given servers, whose stream remembers dedup ids for a while.
func newSite(t *testing.T, database *testcontainers.Database, broker string, window time.Duration, l load) *site {
	t.Helper()
	s := &site{
		t: t, seed: lot.Seed(t), load: l, postgres: database.URL, nats: broker, db: database.DB, topic: "effects",
		timeout: time.Second, backoff: 50 * time.Millisecond, poll: 50 * time.Millisecond,
	}
	s.load.Messages = lot.Messages(t, l.Messages)
	s.load.Unkeyed = l.Unkeyed * s.load.Messages / l.Messages
	_, err := s.db.Exec(sentSQL)
	must(t, err)
	nc, err := nats.Connect(broker, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	must(t, err)
	t.Cleanup(nc.Close)
	s.js, err = natsjs.New(nc)
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	_, err = s.js.CreateStream(ctx, natsjs.StreamConfig{Name: s.topic, Subjects: []string{s.topic}, Duplicates: window})
	must(t, err)
	return s
}

// ownPostgres starts a Postgres server for one test.
func ownPostgres(t *testing.T) *testcontainers.PostgresServer {
	t.Helper()
	return own.Postgres(t, testcontainers.PostgresOptions{Volatile: true})
}

// ownNATS starts a NATS server for one test, which writes through to the disk whatever
// it acknowledges.
func ownNATS(t *testing.T) *testcontainers.NATSServer {
	t.Helper()
	// In memory: it is processes that die here and not the machine, and to write through to
	// a disk once for each message takes minutes.
	return own.NATS(t, testcontainers.NATSOptions{Volatile: true, Config: "jetstream { sync_interval: always }"})
}

// produce starts the producers.
func (s *site) produce() {
	for n := range s.load.Producers {
		r := role{Kind: "producer", Name: fmt.Sprint("producer ", n), Postgres: s.postgres, Topic: s.topic, Seed: s.seed, Load: s.load, Producer: n}
		s.producers = append(s.producers, actor.Start(s.t, r.Name, roleVariable, r))
	}
}

// relay starts a relay.
func (s *site) relay(f fault, after int) *actor.Process {
	s.t.Helper()
	r := role{
		Kind: "relay", Name: fmt.Sprint("relay ", len(s.relays)), Postgres: s.postgres, NATS: s.nats, Seed: s.seed, Calm: s.calm, Steady: s.steady, Bare: s.bare,
		Fault: f, After: after, PollInterval: s.poll, PublishTimeout: s.timeout, MinBackoff: s.backoff,
	}
	p := actor.Start(s.t, r.Name, roleVariable, r)
	s.relays = append(s.relays, p)
	return p
}

// operate has somebody look after parked messages, until the test ends.
func (s *site) operate() {
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- operate(ctx, s.db) }()
	s.t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			s.t.Errorf("operator: %v", err)
		}
	})
}

// finished tells whether all producers have committed what they had to.
func (s *site) finished() bool {
	for _, p := range s.producers {
		if p.Times("finished") == 0 {
			return false
		}
	}
	return true
}

// progress returns which part of the load is committed, in percent. While Postgres is
// away that is not known: 0.
func (s *site) progress() int {
	return 100 * s.count(`SELECT count(*) FROM sent`) / (s.load.Messages + s.load.Unkeyed)
}

// count returns a number from the database, and -1 while that is away.
func (s *site) count(query string, args ...any) (n int) {
	if err := s.db.QueryRow(query, args...).Scan(&n); err != nil {
		return -1
	}
	return n
}

// drained waits until all is written and published.
func (s *site) drained() {
	s.t.Helper()
	eventually(s.t, "all is written and the outbox is empty", s.idle, func() string {
		return fmt.Sprintf("%d %% are written, %d rows are in the outbox, %d of them parked", s.progress(),
			s.count(`SELECT count(*) FROM oncemill.outbox`), s.count(`SELECT count(*) FROM oncemill.outbox WHERE parked_at IS NOT NULL`))
	})
}

// times returns how often relays have said a word.
func (s *site) times(word string) (n int) {
	for _, p := range s.relays {
		n += p.Times(word)
	}
	return n
}

// cut returns the first word of a line, and the rest.
func cut(line string) (word, rest string) {
	word, rest, _ = strings.Cut(line, " ")
	return word, rest
}
