package kafka_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/consumers/kafka"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/testcontainers"
)

// A subject is one of a test's own, with its stream.
type subject struct {
	t      testing.TB
	name   string
	stream natsjs.Stream
}

func newSubject(t testing.TB, url string) *subject {
	t.Helper()
	nc, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	must(t, err)
	t.Cleanup(nc.Close)
	js, err := natsjs.New(nc)
	must(t, err)
	name := "n" + watermill.NewShortUUID()
	stream, err := js.CreateStream(within(t), natsjs.StreamConfig{Name: name, Subjects: []string{name + ".>"}})
	must(t, err)
	return &subject{t, name, stream}
}

// messages reads the first n messages of the stream.
func (s *subject) messages(n int) (all []natsjs.Msg) {
	s.t.Helper()
	consumer, err := s.stream.OrderedConsumer(within(s.t), natsjs.OrderedConsumerConfig{})
	must(s.t, err)
	for len(all) < n {
		msg, err := consumer.Next(natsjs.FetchMaxWait(patience))
		must(s.t, err)
		all = append(all, msg)
	}
	return all
}

// routed starts a daemon that publishes to both brokers: the subject's topics to NATS,
// the bench's to Kafka.
func routed(t testing.TB, database *testcontainers.Database, natsURL string, s *subject, brokers string, b *bench, flags ...string) *daemon {
	t.Helper()
	return relays(t, database, brokers, append([]string{"--nats-url", natsURL, "--route", s.name + ".*=nats", "--route", b.topic + "*=kafka"}, flags...)...)
}

func TestOneRelayPublishesToNATSAndToKafkaByTopic(t *testing.T) {
	t.Parallel()
	const total, keys = 2000, 7
	b, database, broker := newBench(t, 3), testcontainers.Postgres(t), testcontainers.NATS(t)
	s := newSubject(t, broker.URL)
	_, err := database.DB.Exec(`
		INSERT INTO oncemill.outbox (topic, uuid, metadata, ordering_key, payload)
		SELECT CASE n % 2 WHEN 0 THEN $1 || '.eu.paid' ELSE $2 END, n, '{"tenant": "acme"}', convert_to((n / 2 % $4)::text, 'UTF8'), convert_to(n::text, 'UTF8')
		FROM generate_series(0, $3 - 1) n`, s.name, b.topic, total, keys)
	must(t, err)
	enqueue(t, database, "nobodys", "lost", nil, nil)
	dedupIDs := dedupIDsByUUID(t, database)
	d := routed(t, database, broker.URL, s, strings.Join(b.seeds, ","), b)

	check := newChecker(t, keys, dedupIDs)
	for _, msg := range s.messages(total / 2) {
		header := msg.Headers()
		if msg.Subject() != s.name+".eu.paid" || header.Get("tenant") != "acme" || header.Get(outbox.OriginMetadata) == "" {
			t.Errorf("message to %s with %v", msg.Subject(), header)
		}
		check.message(0, header.Get(kafka.UUIDHeader), header.Get(nats.MsgIdHdr), string(msg.Data()))
	}
	for _, r := range recordsOf(b, total/2) {
		header := make(map[string]string)
		for _, h := range r.Headers {
			header[h.Key] = string(h.Value)
		}
		if r.Topic != b.topic || header["tenant"] != "acme" || header[outbox.OriginMetadata] == "" {
			t.Errorf("record in %s with %v", r.Topic, header)
		}
		check.message(1, header[kafka.UUIDHeader], header[outbox.DedupMetadata], string(r.Value))
	}

	until(t, "all but one row are gone", func() bool { return rowsLeft(t, database) == 1 })
	var text string
	must(t, database.DB.QueryRow(`SELECT last_error FROM oncemill.outbox WHERE parked_at IS NOT NULL`).Scan(&text))
	complains(t, errors.New(text), `"nobodys"`, "--route")
	d.awaitReady(200)
	d.stop()
}

func dedupIDsByUUID(t testing.TB, database *testcontainers.Database) map[string]string {
	t.Helper()
	rows, err := database.DB.Query(`SELECT uuid, dedup_id FROM oncemill.outbox`)
	must(t, err)
	defer rows.Close()
	all := make(map[string]string)
	for rows.Next() {
		var uuid, id string
		must(t, rows.Scan(&uuid, &id))
		all[uuid] = id
	}
	must(t, rows.Err())
	return all
}

// A checker wants each message once, by its UUID and dedup id, and those of a key in
// their order.
type checker struct {
	t        testing.TB
	keys     int
	dedupIDs map[string]string // of those still to come
	last     map[[2]int]int
}

func newChecker(t testing.TB, keys int, dedupIDs map[string]string) *checker {
	return &checker{t, keys, dedupIDs, make(map[[2]int]int)}
}

func (c *checker) message(broker int, uuid, dedupID, payload string) {
	c.t.Helper()
	n := 0
	if _, err := fmt.Sscan(payload, &n); err != nil || uuid != payload || dedupID != c.dedupIDs[uuid] {
		c.t.Errorf("message %q %q with the dedup id %q, want %q", uuid, payload, dedupID, c.dedupIDs[uuid])
	}
	delete(c.dedupIDs, uuid)
	key := [2]int{broker, n / 2 % c.keys}
	if last, ok := c.last[key]; ok && last >= n {
		c.t.Errorf("%d of one key came after %d", n, last)
	}
	c.last[key] = n
}

// While one broker is away the rows of the other go out, and /readyz names it.
func TestOneOfTwoBrokersIsAway(t *testing.T) {
	t.Parallel()
	for name, freeze := range map[string]bool{"down": false, "frozen": true} {
		t.Run("NATS "+name, func(t *testing.T) {
			t.Parallel()
			server, err := testcontainers.StartNATS(within(t), testcontainers.NATSOptions{})
			must(t, err)
			t.Cleanup(func() { must(t, server.Close()) })
			b, database := newBench(t, 1), testcontainers.Postgres(t)
			s := newSubject(t, server.URL())
			d := routed(t, database, server.URL(), s, strings.Join(b.seeds, ","), b)
			d.awaitReady(200)
			begone(t, server, freeze)
			if !freeze { // a frozen one keeps its connections
				complains(t, errors.New(d.awaitReady(503)), "NATS at "+server.URL()+": ", "Kafka at "+b.seeds[0]+": ready")
			}
			othersGoOut(t, database, s.name+".a", b.topic)
			recordsOf(b, 10)
			back(t, server, freeze)
			awaitNoRows(t, database)
			d.awaitReady(200)
			s.messages(10)
			d.stop()
		})
		t.Run("Kafka "+name, func(t *testing.T) {
			t.Parallel()
			server, broker, database := ownKafka(t), testcontainers.NATS(t), testcontainers.Postgres(t)
			b, s := benchOn(t, []string{server.Broker()}, 1), newSubject(t, broker.URL)
			d := routed(t, database, broker.URL, s, server.Broker(), b)
			d.awaitReady(200)
			begone(t, server, freeze)
			complains(t, errors.New(d.awaitReady(503)), ": ready\nKafka at "+server.Broker()+": ")
			othersGoOut(t, database, b.topic, s.name+".a")
			s.messages(10)
			back(t, server, freeze)
			awaitNoRows(t, database)
			d.awaitReady(200)
			recordsOf(b, 10)
			d.stop()
		})
	}
}

// othersGoOut writes rows to a topic of a broker that is away and to one of another,
// in turn, and waits until only the former are left.
func othersGoOut(t testing.TB, database *testcontainers.Database, away, good string) {
	t.Helper()
	for i := range 10 {
		enqueue(t, database, away, fmt.Sprint(i), nil, nil)
		enqueue(t, database, good, fmt.Sprint(i), nil, nil)
	}
	until(t, "the rows of the other broker are gone", func() bool {
		var left int
		must(t, database.DB.QueryRow(`SELECT count(*) FROM oncemill.outbox WHERE topic = $1`, good).Scan(&left))
		return left == 0
	})
	var left, attempts int
	must(t, database.DB.QueryRow(`SELECT count(*), sum(attempts) FROM oncemill.outbox`).Scan(&left, &attempts))
	if left != 10 || attempts != 0 {
		t.Errorf("%d rows are left, with %d attempts: want 10 with none", left, attempts)
	}
}

// A stoppable is a server of one's own.
type stoppable interface {
	Kill() error
	Freeze() error
	Thaw() error
}

func begone(t testing.TB, server stoppable, freeze bool) {
	t.Helper()
	if freeze {
		must(t, server.Freeze())
	} else {
		must(t, server.Kill())
	}
}

func back(t testing.TB, server stoppable, frozen bool) {
	t.Helper()
	if frozen {
		must(t, server.Thaw())
		return
	}
	switch server := server.(type) {
	case *testcontainers.NATSServer:
		must(t, server.Start(within(t)))
	case *testcontainers.KafkaServer:
		must(t, server.Start(within(t)))
	}
}
