package kafka_test

import (
	"database/sql"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oncemill/oncemill/consumers/kafka"
	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/actor"
)

// A site is where messages are handled: a database, a topic of orders that the
// group bills, and one of its receipts.
type site struct {
	*bench
	t        *testing.T
	postgres string // URL for workers and relays
	db       *sql.DB
	group    string
	receipts string
	keys     []string // of the orders, by number
}

func newSite(t *testing.T, partitions int32) *site {
	t.Helper()
	return siteOn(t, testcontainers.Postgres(t), testcontainers.Kafka(t).Brokers, partitions)
}

func siteOn(t *testing.T, database *testcontainers.Database, seeds []string, partitions int32) *site {
	t.Helper()
	b := benchOn(t, seeds, partitions)
	s := &site{bench: b, t: t, postgres: database.URL, db: database.DB, group: "billing-" + b.topic, receipts: b.topic + "-receipts"}
	b.createTopic(s.receipts, partitions)
	_, err := s.db.Exec(`
		CREATE TABLE effects (seq bigint GENERATED ALWAYS AS IDENTITY, handler text, key text, number integer, worker text, partition integer, "offset" bigint, previous bigint);
		CREATE INDEX ON effects (handler, partition, "offset")`)
	must(t, err)
	return s
}

func start(t *testing.T, r role) *actor.Process {
	t.Helper()
	return actor.Start(t, r.Name, roleVariable, r)
}

func (s *site) worker(name string) role {
	return role{Kind: "worker", Name: name, Postgres: s.postgres, Brokers: s.seeds, Topic: s.topic, Group: s.group, Receipts: s.receipts}
}

func (s *site) mailer(name string) role {
	r := s.worker(name)
	r.Topic, r.Group, r.Receipts = s.receipts, "mailing-"+s.topic, ""
	return r
}

func (s *site) relay(name string) role {
	return role{Kind: "relay", Name: name, Postgres: s.postgres, Brokers: s.seeds}
}

// record makes the next order.
func (s *site) record() *kgo.Record {
	key, number := watermill.NewUUID(), len(s.keys)
	s.keys = append(s.keys, key)
	return &kgo.Record{
		Topic:   s.topic,
		Key:     fmt.Append(nil, "customer ", number%50),
		Value:   []byte(strconv.Itoa(number)),
		Headers: []kgo.RecordHeader{{Key: kafka.UUIDHeader, Value: []byte(key)}},
	}
}

// order stores n orders.
func (s *site) order(n int) {
	s.t.Helper()
	var records []*kgo.Record
	for range n {
		records = append(records, s.record())
	}
	must(s.t, s.client.ProduceSync(within(s.t), records...).FirstErr())
}

func (s *site) count(query string, args ...any) (n int) {
	s.t.Helper()
	if err := s.db.QueryRow(query, args...).Scan(&n); err != nil {
		s.t.Fatalf("%s: %v", query, err)
	}
	return n
}

func (s *site) effects() int {
	s.t.Helper()
	return s.count(`SELECT count(*) FROM effects WHERE handler = $1`, s.group)
}

// consumed waits until a group has committed everything in a topic.
func (s *site) consumed(group, topic string) {
	s.t.Helper()
	var ends, done int64
	until(s.t, group+" has committed everything", func() bool {
		ends, done = s.lag(group, topic)
		return done == ends
	}, func() string { return fmt.Sprintf("%d of %d", done, ends) })
}

func (s *site) lag(group, topic string) (ends, done int64) {
	s.t.Helper()
	listed, err := s.admin.ListEndOffsets(within(s.t), topic)
	if err != nil || listed.Error() != nil { // as while a broker starts
		return -1, 0
	}
	listed.Each(func(o kadm.ListedOffset) { ends += o.Offset })
	offsets, err := s.admin.FetchOffsets(within(s.t), group)
	if err != nil {
		return -1, 0
	}
	offsets.Each(func(o kadm.OffsetResponse) {
		if o.Topic == topic && o.At > 0 {
			done += o.At
		}
	})
	return ends, done
}

// billed waits until every order is handled, stops the workers and wants the
// books to balance.
func (s *site) billed(workers ...*actor.Process) {
	s.t.Helper()
	s.consumed(s.group, s.topic)
	for _, p := range workers {
		p.Stop()
	}
	s.balance(s.group, 0)
}

// balance wants each order to have had its effect once, in the order of its
// partition, in the name of a claim of its own.
func (s *site) balance(handler string, dead int) {
	s.t.Helper()
	for what, query := range map[string]string{
		"orders without an effect": `
			SELECT count(*) - $3::integer FROM generate_series(0, $2::integer - 1) AS ordered (number)
			WHERE NOT EXISTS (SELECT FROM effects WHERE handler = $1 AND effects.number = ordered.number)`,
		"orders with more than one effect": `
			SELECT count(*) FROM (SELECT FROM effects WHERE handler = $1 AND $2::integer + $3::integer >= 0 GROUP BY number HAVING count(*) > 1) AS twice`,
		"claims without an effect, or effects without a claim": `
			SELECT count(*) FROM (SELECT key FROM oncemill.claims WHERE consumer = $1 AND outcome = 'settled' AND $2::integer + $3::integer >= 0) AS c
			FULL JOIN (SELECT key FROM effects WHERE handler = $1) AS e USING (key)
			WHERE c.key IS NULL OR e.key IS NULL`,
		"dead letters too many": `
			SELECT count(*) - $3::integer FROM oncemill.claims WHERE consumer = $1 AND outcome = 'dead' AND $2::integer >= 0`,
	} {
		if n := s.count(query, handler, len(s.keys), dead); n != 0 {
			s.t.Errorf("%s: %d %s, of %d orders", handler, n, what, len(s.keys))
		}
	}
}

// ordered wants the effects to be in the order of the partitions.
func (s *site) ordered() {
	s.t.Helper()
	if n := s.count(`
		SELECT count(*) FROM (
			SELECT "offset" < lag("offset") OVER (PARTITION BY partition ORDER BY seq) AS early FROM effects WHERE handler = $1
		) AS e WHERE early`, s.group); n != 0 {
		s.t.Errorf("%d effects are out of order in their partition", n)
	}
}

// inTurn wants each effect to have found that of the offset before it, which may be
// in its own transaction, and none of a later one. None may be missing.
func (s *site) inTurn() {
	s.t.Helper()
	if n := s.count(`SELECT count(*) FROM effects WHERE handler = $1 AND COALESCE(previous, -1) <> "offset" - 1`, s.group); n != 0 {
		s.t.Errorf("%d effects had another one before them than that of the offset before", n)
	}
}

// transactions counts those that effects were committed in.
func (s *site) transactions() int {
	s.t.Helper()
	return s.count(`SELECT count(DISTINCT xmin::text) FROM effects WHERE handler = $1`, s.group)
}

// eventually waits until the work has come so far.
func (s *site) awaitEffects(n int) {
	s.t.Helper()
	until(s.t, fmt.Sprintf("%d effects", n), func() bool { return s.effects() >= n }, func() string { return fmt.Sprint(s.effects()) })
}

// load stores orders, a few at a time, until the returned function is called.
func (s *site) load(pause time.Duration) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(pause)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
				// The client repeats it until the broker has it.
				if err := s.client.ProduceSync(within(s.t), s.record()).FirstErr(); err != nil {
					s.t.Error(err)
				}
			}
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}
