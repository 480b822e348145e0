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
	"sync/atomic"
	"testing"
	"time"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
)

// insertKeyed writes rows of a key, whose payloads are their numbers.
func insertKeyed(t *testing.T, db execer, key string, from, to int) {
	t.Helper()
	testenv.NeedsSchema(t, 6)
	if _, err := db.Exec(`INSERT INTO oncemill.outbox (topic, ordering_key, payload)
		SELECT 't', convert_to($1, 'UTF8'), convert_to(n::text, 'UTF8') FROM generate_series($2::int, $3::int) AS n`, key, from, to-1); err != nil {
		t.Fatal(err)
	}
}

type execer interface {
	Exec(query string, args ...any) (sql.Result, error)
}

// ofKey returns the numbers of a key's rows, in the order in which they came.
func ofKey(rows []outbox.Row, key string) (numbers []int) {
	for _, row := range rows {
		if string(row.OrderingKey) == key {
			var n int
			_, _ = fmt.Sscan(string(row.Payload), &n)
			numbers = append(numbers, n)
		}
	}
	return numbers
}

func wantInOrder(t *testing.T, rows []outbox.Row, key string, total int) {
	t.Helper()
	if got := ofKey(rows, key); !slices.Equal(got, upTo(0, total)) {
		t.Errorf("%s came as %v, want 0 to %d", key, got, total-1)
	}
}

// Four relays, a sink that fails at random, and rows that come while they work: each
// key's rows come in their order, and each once.
func TestSeveralRelaysKeepTheOrderOfEachKey(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	const keys, each, relays = 30, 60, 4
	var mu sync.Mutex
	sink := newRecorder(func(outbox.Row) error {
		mu.Lock()
		defer mu.Unlock()
		switch rand.N(30) {
		case 0:
			return errors.New("no luck")
		case 1:
			return outbox.ErrUnavailable
		}
		return nil
	})
	for i := range keys {
		insertKeyed(t, db, fmt.Sprint(i), 0, each/2)
	}
	var all []*started
	for range relays {
		all = append(all, start(t, &outbox.Relay{DB: db, Sink: sink, Batch: 97, MinBackoff: time.Millisecond, MaxBackoff: 10 * time.Millisecond}))
	}
	for i := range keys {
		insertKeyed(t, db, fmt.Sprint(i), each/2, each)
	}
	poll(t, func() bool { return rowCount(t, db) == 0 })
	for _, r := range all {
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	}
	rows := sink.published()
	for i := range keys {
		wantInOrder(t, rows, fmt.Sprint(i), each)
	}
}

// At no time has the sink two rows of one key.
func TestOneUnacknowledgedMessageForEachKey(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	for i := range 7 {
		insertKeyed(t, db, fmt.Sprint(i), 0, 40)
	}
	sink := &oneOfEach{under: make(map[string]bool)}
	for range 3 {
		start(t, &outbox.Relay{DB: db, Sink: sink})
	}
	poll(t, func() bool { return rowCount(t, db) == 0 })
	if n := sink.twice(); n > 0 {
		t.Errorf("%d rows were handed to the sink while another one of their key was", n)
	}
}

// oneOfEach counts rows whose key is under way already.
type oneOfEach struct {
	mu     sync.Mutex
	under  map[string]bool
	second int
}

func (s *oneOfEach) twice() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.second
}

func (s *oneOfEach) PublishBatch(_ context.Context, rows []outbox.Row) []error {
	s.mark(rows, true)
	time.Sleep(time.Millisecond)
	s.mark(rows, false)
	return make([]error, len(rows))
}

func (s *oneOfEach) mark(rows []outbox.Row, under bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, row := range rows {
		if under && s.under[string(row.OrderingKey)] {
			s.second++
		}
		s.under[string(row.OrderingKey)] = under
	}
}

// A row that is parked holds up those of its key, and no others, until it is tried again
// or dropped.
func TestAParkedRowHoldsUpItsOwnKeyOnly(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	var mend sync.Once
	mended := make(chan struct{})
	sink := newRecorder(func(row outbox.Row) error {
		select {
		case <-mended:
			return nil
		default:
		}
		if string(row.OrderingKey) == "bad" && string(row.Payload) == "3" {
			return outbox.ErrRefused
		}
		return nil
	})
	insertKeyed(t, db, "bad", 0, 10)
	for i := range 70 {
		insertKeyed(t, db, fmt.Sprint(i), 0, 5)
	}
	relay := start(t, &outbox.Relay{DB: db, Sink: sink})
	poll(t, func() bool { return rowCount(t, db) == 7 })
	insertKeyed(t, db, "bad", 10, 20)
	for i := range 70 {
		insertKeyed(t, db, fmt.Sprint(i), 5, 10)
	}
	relay.Wake()
	poll(t, func() bool { return rowCount(t, db) == 17 })
	if got := ofKey(sink.published(), "bad"); !slices.Equal(got, []int{0, 1, 2}) {
		t.Errorf("%v came of the key whose row 3 is parked", got)
	}
	if n := value[int](t, db, `SELECT count(*) FROM oncemill.outbox WHERE attempts > 0 OR parked_at IS NOT NULL`); n != 1 {
		t.Errorf("%d rows have an attempt, want only the one that is parked", n)
	}
	mend.Do(func() { close(mended) })
	exec(t, db, `UPDATE oncemill.outbox SET parked_at = NULL, attempts = 0, dedup_id = gen_random_uuid() WHERE parked_at IS NOT NULL`)
	relay.Wake()
	poll(t, func() bool { return rowCount(t, db) == 0 })
	rows := sink.published()
	wantInOrder(t, rows, "bad", 20)
	for i := range 70 {
		wantInOrder(t, rows, fmt.Sprint(i), 10)
	}
}

// So does one whose metadata cannot be read.
func TestARowThatCannotBeReadHoldsUpItsOwnKeyOnly(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	insertKeyed(t, db, "bad", 0, 3)
	exec(t, db, `UPDATE oncemill.outbox SET metadata = '{"oncemill:base64": 7}' WHERE payload = '1'`)
	insertKeyed(t, db, "good", 0, 3)
	sink := newRecorder(nil)
	start(t, &outbox.Relay{DB: db, Sink: sink})
	poll(t, func() bool { return rowCount(t, db) == 2 })
	wantInOrder(t, sink.published(), "good", 3)
	wantInOrder(t, sink.published(), "bad", 1)
	exec(t, db, `DELETE FROM oncemill.outbox WHERE parked_at IS NOT NULL`)
	poll(t, func() bool { return rowCount(t, db) == 0 })
	if got := ofKey(sink.published(), "bad"); !slices.Equal(got, []int{0, 2}) {
		t.Errorf("%v came", got)
	}
}

// A transaction that commits late has ids far below what was published since. What
// follows of its key waits for nobody, but comes after it.
func TestALateCommitIsNotOvertakenByItsOwnKey(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	sink := newRecorder(nil)
	relay := start(t, &outbox.Relay{DB: db, Sink: sink})
	insertKeyed(t, db, "late", 0, 1)
	poll(t, func() bool { return rowCount(t, db) == 0 })
	for round := range 20 {
		late, err := db.Begin()
		if err != nil {
			t.Fatal(err)
		}
		insertKeyed(t, late, "late", 1+2*round, 2+2*round)
		for i := range 3 { // others pass it by, and floors would rise
			insertKeyed(t, db, fmt.Sprint(i), 10*round, 10*round+10)
			relay.Wake()
			poll(t, func() bool { return rowCount(t, db) == 0 })
			time.Sleep(40 * time.Millisecond) // not for being right: for a relay that is wrong to be found
		}
		if err := late.Commit(); err != nil {
			t.Fatal(err)
		}
		insertKeyed(t, db, "late", 2+2*round, 3+2*round)
		relay.Wake()
		poll(t, func() bool { return rowCount(t, db) == 0 })
	}
	wantInOrder(t, sink.published(), "late", 41)
}

// While another transaction keeps vacuum from deleted rows, those with ordering keys are
// not stepped over again and again either.
func TestDeletedRowsOfKeysAreNotSteppedOverAgain(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	old, err := db.BeginTx(t.Context(), &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer old.Rollback()
	if _, err := old.Exec(`SELECT FROM oncemill.outbox`); err != nil {
		t.Fatal(err)
	}
	const total = 30_000
	relay := start(t, &outbox.Relay{DB: db, Sink: newRecorder(nil), PollInterval: time.Hour})
	exec(t, db, `INSERT INTO oncemill.outbox (topic, ordering_key) SELECT 't', convert_to((n % 1000)::text, 'UTF8') FROM generate_series(1, $1) AS n`, total)
	relay.Wake()
	relay.settled(t, total)
	const woken = 200
	for i := range woken {
		insertKeyed(t, db, fmt.Sprint(i), 0, 1)
		relay.Wake()
		relay.settled(t, 1)
	}
	if err := relay.stop(); err != nil {
		t.Fatal(err)
	}
	steps := 0
	poll(t, func() bool {
		before := steps
		steps = value[int](t, db, `SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'outbox_keyed'`)
		return steps >= total && steps == before
	})
	// From the bottom it would be 6,000,000 for the wake-ups alone.
	if most := 3*total + 2_000_000; steps > most {
		t.Errorf("%d steps in the index for %d rows, want at most %d", steps, total, most)
	}
	t.Logf("%d steps in the index for %d rows", steps, total)
}

// A row that somebody has locked, as an operator who is about to change it, holds up its
// own key only; and what was changed is what goes out.
func TestARowThatSomebodyHasLockedHoldsUpItsOwnKeyOnly(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	insertKeyed(t, db, "locked", 0, 10)
	for i := range 70 {
		insertKeyed(t, db, fmt.Sprint(i), 0, 5)
	}
	operator, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer operator.Rollback()
	if _, err := operator.Exec(`UPDATE oncemill.outbox SET metadata = '{"changed": "yes"}' WHERE ordering_key = 'locked' AND payload = '3'`); err != nil {
		t.Fatal(err)
	}
	sink := newRecorder(nil)
	relay := start(t, &outbox.Relay{DB: db, Sink: sink})
	poll(t, func() bool { return rowCount(t, db) == 7 })
	for i := range 70 {
		insertKeyed(t, db, fmt.Sprint(i), 5, 10)
	}
	relay.Wake()
	poll(t, func() bool { return rowCount(t, db) == 7 })
	if got := ofKey(sink.published(), "locked"); !slices.Equal(got, []int{0, 1, 2}) {
		t.Errorf("%v came of the key whose row 3 is locked", got)
	}
	if err := operator.Commit(); err != nil {
		t.Fatal(err)
	}
	poll(t, func() bool { return rowCount(t, db) == 0 })
	rows := sink.published()
	wantInOrder(t, rows, "locked", 10)
	for i := range 70 {
		wantInOrder(t, rows, fmt.Sprint(i), 10)
	}
	for _, row := range rows {
		if string(row.OrderingKey) == "locked" && string(row.Payload) == "3" && row.Metadata["changed"] != "yes" {
			t.Errorf("the row went out as it was before it was changed: %v", row.Metadata)
		}
	}
}

// A broker may be unavailable for some topics, with a long backlog of theirs in front of
// all else.
func TestTopicsThatTheBrokerDoesNotTakeHoldUpNoOthers(t *testing.T) {
	t.Parallel()
	for name, key := range map[string]string{"without keys": "NULL", "ordered": "convert_to($1 || (n % 300)::text, 'UTF8')"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := testenv.DB(t)
			var isAway atomic.Bool
			isAway.Store(true)
			sink := newRecorder(func(row outbox.Row) error {
				if row.Topic == "x" && isAway.Load() {
					return fmt.Errorf("%w: no leader", outbox.ErrUnavailable)
				}
				return nil
			})
			logger, log := hearLog()
			insert := `INSERT INTO oncemill.outbox (topic, ordering_key) SELECT $1::text, ` + key + ` FROM generate_series(1, $2::int) AS n`
			exec(t, db, insert, "x", 5000)
			relay := start(t, &outbox.Relay{DB: db, Sink: sink, Logger: logger})
			for range 30 {
				exec(t, db, insert, "y", 50)
				relay.Wake()
				poll(t, func() bool { return rowCount(t, db) == 5000 })
			}
			if err := relay.Ready(); err == nil || !strings.Contains(err.Error(), "no leader") {
				t.Errorf("ready: %v", err)
			}
			isAway.Store(false)
			poll(t, func() bool { return rowCount(t, db) == 0 })
			poll(t, func() bool { return relay.Ready() == nil })
			if n := value[int](t, db, `SELECT count(*) FROM oncemill.outbox WHERE attempts > 0`); n != 0 {
				t.Errorf("%d rows have attempts", n)
			}
			if text := log(); strings.Count(text, "cannot go on") != 1 || strings.Count(text, "goes on") != 1 {
				t.Errorf("the log is\n%s", text)
			}
		})
	}
}

// However many rows wait behind one that is parked, and however long a transaction stays
// open that has written to the outbox: others go out, and fetches do not step over all that
// wait again and again.
func TestAKeyWithManyRowsThatWaitHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	for name, late := range map[string]bool{"": false, "beside an open transaction": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := testenv.DB(t)
			const waiting = 6_000
			if late {
				tx, err := db.Begin()
				if err != nil {
					t.Fatal(err)
				}
				defer tx.Rollback()
				insertKeyed(t, tx, "late", 0, 1)
			}
			insertKeyed(t, db, "hot", 0, waiting)
			exec(t, db, `UPDATE oncemill.outbox SET parked_at = now() WHERE id = (SELECT min(id) FROM oncemill.outbox)`)
			sink := newRecorder(nil)
			relay := start(t, &outbox.Relay{DB: db, Sink: sink})
			const rounds, keys = 20, 100
			for round := range rounds {
				exec(t, db, `INSERT INTO oncemill.outbox (topic, ordering_key, payload)
					SELECT 't', convert_to(k::text, 'UTF8'), convert_to($1::text, 'UTF8') FROM generate_series(0, $2::int - 1) AS k`, fmt.Sprint(round), keys)
				insertKeyed(t, db, "hot", waiting+round, waiting+round+1)
				relay.Wake()
				poll(t, func() bool { return rowCount(t, db) == waiting+round+1 })
			}
			steps := 0
			poll(t, func() bool {
				before := steps
				steps = value[int](t, db, `SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'outbox_keyed'`)
				return steps >= waiting && steps == before
			})
			t.Logf("%d steps in the index", steps)
			exec(t, db, `UPDATE oncemill.outbox SET parked_at = NULL WHERE parked_at IS NOT NULL`)
			relay.Wake()
			poll(t, func() bool { return rowCount(t, db) == 0 })
			rows := sink.published()
			wantInOrder(t, rows, "hot", waiting+rounds)
			for i := range keys {
				wantInOrder(t, rows, fmt.Sprint(i), rounds)
			}
		})
	}
}

// A transaction that has written to the outbox may stay open for long. Fetches do not step
// over all that was published meanwhile; and what it commits in the end goes out, and
// before what follows it.
func TestATransactionThatStaysOpenHoldsUpNothing(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	sink := newRecorder(nil)
	relay := start(t, &outbox.Relay{DB: db, Sink: sink})
	insertKeyed(t, db, "late", 0, 1)
	poll(t, func() bool { return rowCount(t, db) == 0 })
	var open []*sql.Tx
	for i := range 2 {
		tx, err := db.Begin()
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		insertKeyed(t, tx, fmt.Sprint("late", i), 0, 3)
		open = append(open, tx)
	}
	const keys, rounds, each = 50, 100, 3
	insertAll := func(round int) {
		exec(t, db, `INSERT INTO oncemill.outbox (topic, ordering_key, payload)
			SELECT 't', convert_to(k::text, 'UTF8'), convert_to(n::text, 'UTF8')
			FROM generate_series($1::int, $2::int) AS n, generate_series(0, $3::int - 1) AS k ORDER BY n`, each*round, each*(round+1)-1, keys)
		relay.Wake()
		poll(t, func() bool { return rowCount(t, db) == 0 })
	}
	insertAll(0)
	time.Sleep(2 * time.Second) // they are taken for what stays open then
	for round := range rounds {
		insertAll(1 + round)
	}
	var steps int
	poll(t, func() bool {
		before := steps
		steps = value[int](t, db, `SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'outbox_keyed'`)
		return steps >= keys*each*rounds && steps == before
	})
	t.Logf("%d steps in the index for %d rows", steps, keys*each*rounds)
	if most := 40 * keys * each * rounds; steps > most { // each round would go through all before
		t.Errorf("%d steps in the index for %d rows, want at most %d", steps, keys*each*rounds, most)
	}
	for i, tx := range open {
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		insertKeyed(t, db, fmt.Sprint("late", i), 3, 6)
		insertAll(1 + rounds + i)
	}
	rows := sink.published()
	for i := range open {
		wantInOrder(t, rows, fmt.Sprint("late", i), 6)
	}
	for i := range keys {
		wantInOrder(t, rows, fmt.Sprint(i), each*(rounds+3))
	}
}

// Many rows may be parked, each of another key. A relay finds them out in a few fetches, and
// then works as if they were not there.
func TestManyParkedRowsHoldUpTheirOwnKeysOnly(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	const parked = 20_000
	exec(t, db, `INSERT INTO oncemill.outbox (topic, ordering_key, parked_at) SELECT 't', convert_to('p' || n, 'UTF8'), now() FROM generate_series(1, $1) AS n`, parked)
	relay := start(t, &outbox.Relay{DB: db, Sink: newRecorder(nil), PollInterval: time.Hour})
	for round := range 50 {
		for i := range 20 {
			insertKeyed(t, db, fmt.Sprint(i), round, round+1)
		}
		relay.Wake()
		relay.settled(t, 20)
	}
	exec(t, db, `UPDATE oncemill.outbox SET parked_at = NULL WHERE ordering_key IN ('p1', 'p777', 'p20000')`)
	relay.Wake()
	relay.settled(t, 3)
}

// The rows of a key that has many of them go out one at a time. Those of others, in the same
// partition too, do not wait for all of them.
func TestAKeyWithManyRowsDoesNotHoldUpItsNeighbours(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	const deep, keys = 3000, 640
	insertKeyed(t, db, "deep", 0, deep)
	for i := range keys {
		insertKeyed(t, db, fmt.Sprint(i), 0, 2)
	}
	var before atomic.Int64
	var others atomic.Int64
	sink := script(func(_ context.Context, rows []outbox.Row) []error {
		time.Sleep(time.Millisecond)
		for _, row := range rows {
			switch {
			case string(row.OrderingKey) != "deep":
				others.Add(1)
			case others.Load() < 2*keys:
				before.Add(1)
			}
		}
		return make([]error, len(rows))
	})
	relay := start(t, &outbox.Relay{DB: db, Sink: sink})
	relay.settled(t, deep+2*keys)
	if n := before.Load(); n > deep/2 {
		t.Errorf("%d of %d rows of one key went out before the last of the others", n, deep)
	}
	t.Logf("%d of %d", before.Load(), deep)
}

// What such a transaction commits goes out though nothing else does.
func TestWhatALongTransactionCommitsGoesOutByItself(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	sink := newRecorder(nil)
	relay := start(t, &outbox.Relay{DB: db, Sink: sink})
	insertKeyed(t, db, "late", 0, 1)
	relay.settled(t, 1)
	long, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer long.Rollback()
	insertKeyed(t, long, "late", 1, 3)
	for round := range 15 { // until it is taken for what stays open, and floors have passed it by
		insertKeyed(t, db, "other", round, round+1)
		relay.Wake()
		relay.settled(t, 1)
		time.Sleep(200 * time.Millisecond)
	}
	if err := long.Commit(); err != nil {
		t.Fatal(err)
	}
	relay.Wake()
	relay.settled(t, 2)
	wantInOrder(t, sink.published(), "late", 3)
}
