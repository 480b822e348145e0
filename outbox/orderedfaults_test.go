package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/schema"
)

// A relay that has nothing to do asks the database no more often than it polls, whether
// there never were rows with ordering keys, or another relay has all of their partitions.
func TestARelayWithNothingToDoDoesNotSpin(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "it counts transactions, and takes advisory locks of a session")
	db := testenv.DB(t)
	relay := start(t, &outbox.Relay{DB: db, Sink: newRecorder(nil), PollInterval: 200 * time.Millisecond})
	poll(t, func() bool { return relay.Ready() == nil })
	wantFewTransactions(t, db, "no ordering key was ever met")

	locks, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer locks.Rollback()
	if _, err := locks.Exec(`SELECT pg_advisory_xact_lock(hashtextextended('oncemill outbox "oncemill"', n)) FROM generate_series(0, 63) AS n`); err != nil {
		t.Fatal(err)
	}
	insertKeyed(t, db, "a", 0, 3)
	relay.Wake()
	wantFewTransactions(t, db, "another relay has all partitions")
	if n := rowCount(t, db); n != 3 {
		t.Fatalf("%d rows are left: the test does not know the locks' names", n)
	}
	locks.Rollback()
	relay.settled(t, 3)
	wantFewTransactions(t, db, "all rows are published")
}

// wantFewTransactions counts those of a second.
func wantFewTransactions(t *testing.T, db querier, when string) {
	t.Helper()
	const query = `SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()`
	count := func() (n int) {
		if err := db.QueryRow(query).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	time.Sleep(1500 * time.Millisecond) // statistics come late
	before := count()
	time.Sleep(3 * time.Second)
	if n := count() - before; n > 200 {
		t.Errorf("%s: %d transactions in 3 seconds", when, n)
	} else {
		t.Logf("%s: %d transactions in 3 seconds", when, n)
	}
}

// Of a key with several rows that cannot be read, nothing passes the first of them.
func TestNothingPassesTheFirstOfSeveralRowsThatCannotBeRead(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	insertKeyed(t, db, "bad", 0, 5)
	exec(t, db, `UPDATE oncemill.outbox SET metadata = '{"oncemill:base64": 7}' WHERE payload IN ('1', '3')`)
	sink := newRecorder(nil)
	relay := start(t, &outbox.Relay{DB: db, Sink: sink})
	relay.settled(t, 3)
	if got := ofKey(sink.published(), "bad"); !slices.Equal(got, []int{0}) {
		t.Errorf("%v came of a key whose rows 1 and 3 cannot be read, want 0 alone", got)
	}
}

// A broker that goes away between two rows of a key is to blame, and not the second row.
func TestABrokerThatGoesAwayMidBatchIsNotTheRowsFault(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	insertKeyed(t, db, "a", 0, 2)
	insertKeyed(t, db, "b", 0, 2)
	calls := 0
	sink := script(func(ctx context.Context, rows []outbox.Row) []error {
		errs := make([]error, len(rows))
		if calls++; calls == 2 {
			<-ctx.Done()
			for i := range errs {
				errs[i] = fmt.Errorf("publish: %w", ctx.Err())
			}
		}
		return errs
	})
	relay := start(t, &outbox.Relay{DB: db, Sink: sink, PublishTimeout: 200 * time.Millisecond, MaxAttempts: 1})
	if sum := relay.settled(t, 4); sum.Published != 4 {
		t.Errorf("%+v, want 4 published", sum)
	}
}

type querier interface {
	QueryRow(query string, args ...any) *sql.Row
}

// A row with an id of its own, or a table whose ids begin anew, does not hide other rows.
func TestRowsWhoseIdsGoBackAreFoundSoon(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	sink := newRecorder(nil)
	relay := start(t, &outbox.Relay{DB: db, Sink: sink})
	exec(t, db, `INSERT INTO oncemill.outbox (id, topic, ordering_key) VALUES (1000000000, 't', 'far')`)
	relay.settled(t, 1)
	for i := range 2 {
		time.Sleep(300 * time.Millisecond) // for floors to rise
		insertKeyed(t, db, "near", 10*i, 10*i+10)
		relay.settled(t, 10)
	}
	exec(t, db, `TRUNCATE oncemill.outbox RESTART IDENTITY`)
	time.Sleep(300 * time.Millisecond)
	insertKeyed(t, db, "near", 20, 30)
	relay.settled(t, 10)
	wantInOrder(t, sink.published(), "near", 30)
}

// A row that is due does not wait for a later one of its key that is not, whatever becomes
// of it at first.
func TestARowThatIsDueDoesNotWaitForALaterOneOfItsKey(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]error{"deferred": errors.New("no luck"), "unavailable": outbox.ErrUnavailable} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := testenv.DB(t)
			exec(t, db, `INSERT INTO oncemill.outbox (topic, ordering_key, payload, not_before)
				VALUES ('t', 'k', '0', NULL), ('t', 'k', '1', now() + interval '1 hour')`)
			failed := false
			sink := newRecorder(func(outbox.Row) error {
				if !failed {
					failed = true
					return answer
				}
				return nil
			})
			start(t, &outbox.Relay{DB: db, Sink: sink, MinBackoff: time.Millisecond})
			if row := sink.next(t); string(row.Payload) != "0" {
				t.Errorf("%s came first", row.Payload)
			}
		})
	}
}

// Relays lose their connections at any moment, rows fail and are parked and tried again,
// and transactions commit late: each key's rows come in their order, if perhaps again.
func TestOrderSurvivesLostConnections(t *testing.T) {
	testenv.NeedsSchema(t, 6)
	t.Parallel()
	db, address := database(t)
	sink := newRecorder(func(outbox.Row) error {
		switch rand.N(40) {
		case 0:
			return errors.New("no luck")
		case 1:
			return outbox.ErrRefused
		}
		return nil
	})
	const relays, keys, each = 3, 12, 150
	for range relays {
		relay := start(t, &outbox.Relay{DB: testenv.Open(t, address+"&application_name=relay"), Sink: sink,
			PollInterval: 5 * time.Millisecond, MinBackoff: time.Millisecond, MaxBackoff: 5 * time.Millisecond})
		poll(t, func() bool { return relay.Ready() == nil })
	}
	trouble, stop := context.WithCancel(t.Context())
	var tasks, writers sync.WaitGroup
	tasks.Go(func() {
		for trouble.Err() == nil {
			time.Sleep(100 * time.Millisecond)
			exec(t, db, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
				WHERE application_name = 'relay' AND datname = current_database() ORDER BY random() LIMIT 1`)
		}
	})
	tasks.Go(func() {
		for trouble.Err() == nil {
			time.Sleep(20 * time.Millisecond)
			exec(t, db, `UPDATE oncemill.outbox SET parked_at = NULL, attempts = 0 WHERE parked_at IS NOT NULL`)
		}
	})
	for k := range keys {
		writers.Go(func() {
			for n := 0; n < each; {
				tx, err := db.Begin()
				if err != nil {
					t.Error(err)
					return
				}
				for range min(1+rand.N(5), each-n) {
					insertKeyed(t, tx, fmt.Sprint(k), n, n+1)
					time.Sleep(rand.N(10 * time.Millisecond))
					n++
				}
				if rand.N(10) == 0 {
					time.Sleep(rand.N(1500 * time.Millisecond)) // and is late
				}
				if err := tx.Commit(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	writers.Wait()
	time.AfterFunc(time.Second, stop)
	<-trouble.Done()
	tasks.Wait()
	poll(t, func() bool {
		exec(t, db, `UPDATE oncemill.outbox SET parked_at = NULL, attempts = 0 WHERE parked_at IS NOT NULL`)
		return rowCount(t, db) == 0
	})
	rows := sink.published()
	for k := range keys {
		var first []int
		for _, n := range ofKey(rows, fmt.Sprint(k)) {
			if !slices.Contains(first, n) {
				first = append(first, n)
			}
		}
		if !slices.Equal(first, upTo(0, each)) {
			t.Errorf("%d came as %v", k, first)
		}
	}
	t.Logf("%d rows came %d times", keys*each, len(rows))
}

// On a schema of version 5 a relay treats rows with ordering keys as others. Once it is
// migrated, while the relay runs, rows wait for those of their key.
func TestARelayFindsOutThatItsSchemaWasMigrated(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	migrations, err := schema.Under("five")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range migrations[:5] {
		exec(t, db, m.SQL)
	}
	insert := func(from, to int) {
		exec(t, db, `INSERT INTO five.outbox (topic, ordering_key, payload)
			SELECT 't', 'k', convert_to(n::text, 'UTF8') FROM generate_series($1::int, $2::int) AS n`, from, to-1)
	}
	sink := newRecorder(func(row outbox.Row) error {
		if row.Topic == "refused" {
			return outbox.ErrRefused
		}
		return nil
	})
	log, logged := hearLog()
	relay := start(t, &outbox.Relay{DB: db, Sink: sink, Schema: "five", Logger: log})
	insert(0, 50)
	exec(t, db, `INSERT INTO five.outbox (topic) VALUES ('unkeyed')`)
	relay.settled(t, 51)
	insert(50, 100)
	exec(t, db, migrations[5].SQL)
	for done := 100; ; done += 10 {
		insert(done, done+10)
		if value[int](t, db, `SELECT idx_scan FROM pg_stat_user_indexes WHERE schemaname = 'five' AND indexrelname = 'outbox_keyed'`) > 0 {
			t.Logf("switched over after %d rows", done+10)
			relay.settled(t, done+10-50)
			wantInOrder(t, sink.published(), "k", done+10)
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	exec(t, db, `INSERT INTO five.outbox (topic, ordering_key) VALUES ('refused', 'r'), ('t', 'r')`)
	relay.settled(t, 1)
	exec(t, db, `INSERT INTO five.outbox (topic, ordering_key) VALUES ('t', 'other')`)
	exec(t, db, `INSERT INTO five.outbox (topic) VALUES ('unkeyed')`)
	relay.settled(t, 2)
	if n := value[int](t, db, `SELECT count(*) FROM five.outbox`); n != 2 {
		t.Errorf("%d rows are left, want the parked one and the one behind it", n)
	}
	if err := relay.Ready(); err != nil || strings.Contains(logged(), "cannot go on") {
		t.Errorf("Ready: %v, log: %s", err, logged())
	}
}

// A key with many rows takes a call of the Sink for each. Keys of other partitions do not
// get fewer rows through for it.
func TestAKeyWithManyRowsDoesNotSlowDownOthers(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	const many, others = 10_000, 10_000
	insertKeyed(t, db, "hot", 0, many)
	exec(t, db, `INSERT INTO oncemill.outbox (topic, ordering_key) SELECT 't', key FROM generate_series(1, 2 * $1) AS n, convert_to('cold-' || n, 'UTF8') AS key
		WHERE get_byte(sha256(key), 0) % 64 <> get_byte(sha256('hot'), 0) % 64 LIMIT $1`, others)
	calls, cold := 0, 0
	done := make(chan struct{})
	start(t, &outbox.Relay{DB: db, Sink: script(func(_ context.Context, rows []outbox.Row) []error {
		time.Sleep(40 * time.Millisecond)
		if cold < others {
			calls++
			for _, row := range rows {
				if string(row.OrderingKey) == "hot" {
					continue
				}
				if cold++; cold == others {
					close(done)
				}
			}
		}
		return make([]error, len(rows))
	})})
	receive(t, done)
	if calls > 100 {
		t.Errorf("%d calls for %d others", calls, others)
	}
	t.Logf("%d calls for %d others", calls, others)
}
