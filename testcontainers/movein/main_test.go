package movein_test

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/actor"
	"github.com/oncemill/oncemill/testcontainers/natsserver"
)

func TestMain(m *testing.M) {
	// What remembers for the Deduplicator never ends.
	actor.Main(m, roleVariable, play, goleak.IgnoreAnyFunction("github.com/ThreeDotsLabs/watermill/message/router/middleware.(*mapExpiringKeyRepository).cleanOutLoop"))
}

// limit is how long a test waits for what should happen soon, so that one that hangs says
// where.
const limit = 60 * time.Second

var logger = watermill.NopLogger{}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*limit)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// poll waits until done returns true, for what no server signals.
func poll(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// A site is a database and a broker of one test.
type site struct {
	t       *testing.T
	db      *sql.DB // of the program that moves in
	own     *sql.DB // of the test: its connections are not kept, and so not found ended
	dbURL   string
	nc      *nats.Conn
	natsURL string
	js      natsjs.JetStream
	stream  natsjs.Stream // of the subjects
}

// newSite gives a test servers of its own, since the guide's names are the same in all
// tests.
func newSite(t *testing.T, subjects ...string) *site {
	t.Helper()
	database := testcontainers.Postgres(t)
	own, err := sql.Open("postgres", database.URL)
	must(t, err)
	own.SetMaxIdleConns(-1)
	t.Cleanup(func() { must(t, own.Close()) })
	s := &site{t: t, db: database.DB, own: own, dbURL: database.URL}
	server, err := natsserver.Embed()
	must(t, err)
	t.Cleanup(func() { must(t, server.Close()) })
	s.natsURL = server.URL()
	s.nc, err = nats.Connect(s.natsURL, nats.MaxReconnects(-1))
	must(t, err)
	t.Cleanup(s.nc.Close)
	s.js, err = natsjs.New(s.nc)
	must(t, err)
	if len(subjects) > 0 {
		s.stream, err = s.js.CreateStream(within(t), natsjs.StreamConfig{Name: "EVENTS", Subjects: subjects})
		must(t, err)
	}
	return s
}

func (s *site) exec(query string, args ...any) {
	s.t.Helper()
	if _, err := s.own.Exec(query, args...); err != nil {
		s.t.Fatalf("%s: %v", query, err)
	}
}

func (s *site) count(query string, args ...any) (n int) {
	s.t.Helper()
	if err := s.own.QueryRow(query, args...).Scan(&n); err != nil {
		s.t.Fatalf("%s: %v", query, err)
	}
	return n
}

// column returns the values of one text column.
func (s *site) column(query string, args ...any) (values []string) {
	s.t.Helper()
	rows, err := s.own.Query(query, args...)
	must(s.t, err)
	defer rows.Close()
	for rows.Next() {
		var value string
		must(s.t, rows.Scan(&value))
		values = append(values, value)
	}
	must(s.t, rows.Err())
	return values
}

// A sentMessage is a message in the stream.
type sentMessage struct {
	uuid    string
	relayed bool // a relay has sent it, and nobody else
}

func (s *site) sent() (all []sentMessage) {
	s.t.Helper()
	info, err := s.stream.Info(within(s.t))
	must(s.t, err)
	for seq := uint64(1); seq <= info.State.LastSeq; seq++ {
		msg, err := s.stream.GetMsg(within(s.t), seq)
		must(s.t, err)
		all = append(all, sentMessage{msg.Header.Get("_watermill_message_uuid"), msg.Header.Get("Nats-Msg-Id") != ""})
	}
	return all
}

// once wants each of some to be among all, once, and nothing else.
func once(t *testing.T, what string, all, some []string) {
	t.Helper()
	all, some = slices.Sorted(slices.Values(all)), slices.Sorted(slices.Values(some))
	if slices.Equal(all, some) {
		return
	}
	count := func(values []string) map[string]int {
		n := make(map[string]int)
		for _, value := range values {
			n[value]++
		}
		return n
	}
	have, want := count(all), count(some)
	var wrong []string
	for value, n := range want {
		if have[value] != n {
			wrong = append(wrong, fmt.Sprintf("%s is there %d times", value, have[value]))
		}
	}
	for value := range have {
		if want[value] == 0 {
			wrong = append(wrong, value+" should not be there")
		}
	}
	slices.Sort(wrong)
	t.Errorf("%s: %d of %d:\n%s", what, len(all), len(some), strings.Join(wrong[:min(20, len(wrong))], "\n"))
}
