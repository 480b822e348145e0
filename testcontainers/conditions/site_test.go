package conditions_test

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/testcontainers"
)

// A site is a Postgres and a NATS of one's own, with a stream of the subject "a".
type site struct {
	t        *testing.T
	database *testcontainers.Database
	server   *testcontainers.NATSServer
	natsURL  string // for relays
	nc       *nats.Conn
	stream   natsjs.Stream
}

// newSite makes a site. change may be nil.
//
// Streams forget the ids of messages soon, so that what is published twice is there
// twice.
func newSite(t *testing.T, change func(*natsjs.StreamConfig)) *site {
	t.Helper()
	ctx := within(t)
	postgres, err := testcontainers.StartPostgres(ctx, testcontainers.PostgresOptions{Volatile: true})
	must(t, err)
	t.Cleanup(func() { must(t, postgres.Close()) })
	server, err := testcontainers.StartNATS(ctx, testcontainers.NATSOptions{})
	must(t, err)
	t.Cleanup(func() { must(t, server.Close()) })
	s := &site{t: t, database: testcontainers.DatabaseOn(t, postgres), server: server, natsURL: server.URL()}
	closed := make(chan struct{})
	s.nc, err = nats.Connect(s.natsURL, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond), nats.ClosedHandler(func(*nats.Conn) { close(closed) }))
	must(t, err)
	t.Cleanup(func() {
		s.nc.Close()
		<-closed
	})
	js, err := natsjs.New(s.nc)
	must(t, err)
	cfg := natsjs.StreamConfig{Name: "A", Subjects: []string{"a"}, Duplicates: 100 * time.Millisecond}
	if change != nil {
		change(&cfg)
	}
	s.stream, err = js.CreateStream(ctx, cfg)
	must(t, err)
	return s
}

func (s *site) exec(statement string, args ...any) {
	s.t.Helper()
	_, err := s.database.DB.Exec(statement, args...)
	must(s.t, err)
}

func (s *site) count(query string, args ...any) (n int) {
	s.t.Helper()
	if err := s.database.DB.QueryRow(query, args...).Scan(&n); err != nil {
		s.t.Fatalf("%s: %v", query, err)
	}
	return n
}

// load writes rows to the outbox, numbered from up to to: their UUIDs are the numbers.
// Every second one has an ordering key, of so many; with 0 none has.
func (s *site) load(topic string, from, to, keys int) {
	s.t.Helper()
	s.exec(`
		INSERT INTO oncemill.outbox (topic, uuid, metadata, ordering_key, payload)
		SELECT $1, n, '{"tenant": "acme"}', CASE WHEN $4 > 0 AND n % 2 = 0 THEN convert_to((n / 2 % $4)::text, 'UTF8') END, convert_to(repeat('x', 100), 'UTF8')
		FROM generate_series($2::bigint, $3::bigint - 1) n ORDER BY n`, topic, from, to, max(keys, 0))
}

// left returns how many rows are in the outbox.
func (s *site) left() int { return s.count(`SELECT count(*) FROM oncemill.outbox`) }

func (s *site) awaitEmpty() {
	s.t.Helper()
	until(s.t, "the outbox is empty", endurance, func() bool {
		return s.count(`SELECT count(*) FROM (SELECT FROM oncemill.outbox LIMIT 1) one`) == 0
	}, func() string { return fmt.Sprintf("%d rows are left", s.left()) })
}

// arrived wants all rows from 0 up to n in the stream, those of a key in their order,
// and returns how many messages are there that have the id of another. Those must be
// the same row.
func (s *site) arrived(n, keys int) (repeated int) {
	s.t.Helper()
	info, err := s.stream.Info(within(s.t))
	must(s.t, err)
	total := int(info.State.Msgs)
	ids, last := make(map[string]int, n), make(map[int]int)
	s.read(total, func(header nats.Header) {
		number, err := strconv.Atoi(header.Get(jetstream.UUIDHeader))
		must(s.t, err)
		id := header.Get(nats.MsgIdHdr)
		if first, seen := ids[id]; seen {
			if first != number {
				s.t.Errorf("rows %d and %d have the same Nats-Msg-Id %s", first, number, id)
			}
			repeated++
			return
		}
		ids[id] = number
		if keys == 0 || number%2 == 1 {
			return
		}
		key := number / 2 % keys
		if before, ok := last[key]; ok && before > number {
			s.t.Errorf("row %d of a key came after row %d", number, before)
		}
		last[key] = number
	})
	rows := make(map[int]bool, n)
	for _, number := range ids {
		rows[number] = true
	}
	if len(rows) != n || len(ids) != n {
		s.t.Errorf("%d rows have arrived under %d ids, want %d", len(rows), len(ids), n)
	}
	return repeated
}

// read reads the headers of the first n messages of the stream.
func (s *site) read(n int, each func(nats.Header)) {
	s.t.Helper()
	if n == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), endurance)
	defer cancel()
	consumer, err := s.stream.OrderedConsumer(ctx, natsjs.OrderedConsumerConfig{HeadersOnly: true})
	must(s.t, err)
	messages, err := consumer.Messages(natsjs.PullMaxMessages(5000))
	must(s.t, err)
	defer messages.Stop()
	for range n {
		msg, err := messages.Next(natsjs.NextContext(ctx))
		must(s.t, err)
		each(msg.Headers())
	}
}
