package kafka_test

import (
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/oncemill/oncemill/testcontainers"
)

// One broker of two is away for long, and has a large backlog: the rows of the other go
// out as if that were not there, those with ordering keys too. When it is back the backlog
// goes out as well.
func TestABacklogForOneBrokerDoesNotHoldUpTheOther(t *testing.T) {
	t.Parallel()
	const backlog, rows, most = 200_000, 30, 5 * time.Second
	server, broker, database := ownKafka(t), testcontainers.NATS(t), testcontainers.Postgres(t)
	b, s := benchOn(t, []string{server.Broker()}, 1), newSubject(t, broker.URL)
	d := routed(t, database, broker.URL, s, server.Broker(), b)
	// latencies are how long rows to NATS take, one after another, with a key and without.
	latencies := func() (all []time.Duration) {
		for i := range rows {
			begun := time.Now()
			var key []byte
			if i%2 == 0 {
				key = []byte("7") // which rows of the backlog have
			}
			enqueue(t, database, s.name+".a", "u", key, nil)
			until(t, "the row is gone", func() bool {
				var left bool
				must(t, database.DB.QueryRow(`SELECT EXISTS (SELECT FROM oncemill.outbox WHERE topic = $1)`, s.name+".a").Scan(&left))
				return !left
			})
			all = append(all, time.Since(begun))
		}
		slices.Sort(all)
		return all
	}
	before := latencies()

	must(t, server.Kill())
	d.log.await(t, "Kafka is away")
	_, err := database.DB.Exec(`
		INSERT INTO oncemill.outbox (topic, uuid, ordering_key, payload)
		SELECT $1, n, CASE WHEN n % 2 = 0 THEN convert_to((n / 2 % 1000)::text, 'UTF8') END, 'x' FROM generate_series(1, $2) n ORDER BY n`, b.topic, backlog)
	must(t, err)
	_, err = database.DB.Exec(`CREATE INDEX ON oncemill.outbox (topic)`) // for the test's own question
	must(t, err)
	d.log.await(t, "cannot go on")
	during := latencies()
	t.Logf("rows for NATS took %v in the middle and %v at most, and %v and %v with a backlog of %d for Kafka, which is away",
		before[rows/2], before[rows-1], during[rows/2], during[rows-1], backlog)
	if during[rows-1] > most {
		t.Errorf("a row for NATS took %v, want at most %v", during[rows-1], most)
	}
	if n := rowsLeft(t, database); n != backlog {
		t.Errorf("%d rows wait for Kafka, want %d", n, backlog)
	}

	must(t, server.Start(within(t)))
	for begun := time.Now(); rowsLeft(t, database) > 0; time.Sleep(100 * time.Millisecond) {
		if time.Since(begun) > 5*time.Minute {
			t.Fatalf("%d rows are left", rowsLeft(t, database))
		}
	}
	d.awaitReady(200)
	ends, err := b.admin.ListEndOffsets(within(t), b.topic)
	must(t, err)
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset != backlog {
			t.Errorf("%d records in Kafka, want %d", o.Offset, backlog)
		}
	})
	d.stop()
}
