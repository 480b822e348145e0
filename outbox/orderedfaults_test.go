package outbox_test

import (
	"context"
	"errors"
	"database/sql"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
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
