package outbox_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
)

func keptCount(t *testing.T, db *sql.DB) int {
	t.Helper()
	return value[int](t, db, `SELECT count(*) FROM oncemill.published`)
}

func replay(t *testing.T, db *sql.DB, r outbox.Replay) int64 {
	t.Helper()
	if r.Since.IsZero() {
		r.Since = time.Unix(0, 0)
	}
	n, err := (&outbox.Admin{DB: db}).Replay(t.Context(), r)
	must(t, err)
	return n
}

// What was published is kept as it was, and comes again as it was but for its dedup id.
func TestKeptRowsAreReplayedAsTheyWere(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "LISTEN")
	testenv.NeedsSchema(t, 6)
	eachDriver(t, func(t *testing.T, db *sql.DB, address string) {
		exec(t, db, `INSERT INTO oncemill.outbox (topic, uuid, metadata, ordering_key, payload, created_at) VALUES
			('a', 'u1', '{"a": "b", "oncemill:base64": {"AA==": "/w=="}}', '\x00ff', '\x00ff', '2026-01-01Z'), ('b', 'u2', '{}', NULL, NULL, '2026-01-02Z'),
			('ab', 'u3', '{}', '', '', '-infinity')`)
		sink := newRecorder(nil)
		relay := start(t, &outbox.Relay{DB: db, Sink: sink, Keep: time.Hour, ListenURL: address, PollInterval: time.Hour})
		first := make(map[string]outbox.Row)
		for range 3 {
			row := sink.next(t)
			first[row.UUID] = row
		}
		relay.settled(t, 3)
		if n, kept := rowCount(t, db), keptCount(t, db); n != 0 || kept != 3 {
			t.Fatalf("%d rows in the outbox, %d kept", n, kept)
		}
		for _, test := range []struct {
			replay outbox.Replay
			want   int64
		}{
			{outbox.Replay{}, 3},
			{outbox.Replay{Topic: "a*"}, 2},
			{outbox.Replay{Topic: "a"}, 1},
			{outbox.Replay{Key: []byte{}}, 1},
			{outbox.Replay{Key: []byte("\x00\xff")}, 1},
			{outbox.Replay{Until: time.Now().Add(-time.Hour)}, 0},
			{outbox.Replay{Since: time.Now().Add(time.Hour)}, 0},
		} {
			test.replay.DryRun = true
			if n := replay(t, db, test.replay); n != test.want {
				t.Errorf("%+v: %d rows, want %d", test.replay, n, test.want)
			}
		}
		var progress []int64
		if n := replay(t, db, outbox.Replay{Progress: func(rows int64) { progress = append(progress, rows) }}); n != 3 || !slices.Equal(progress, []int64{3}) {
			t.Errorf("%d rows were put back, progress is %v", n, progress)
		}
		for range 3 {
			row := sink.next(t)
			before := first[row.UUID]
			if row.DedupID == before.DedupID || row.ID <= 3 || row.Topic != before.Topic || !sameBytes(row.OrderingKey, before.OrderingKey) || !sameBytes(row.Payload, before.Payload) {
				t.Errorf("row is %+v, was %+v", row, before)
			}
			if row.UUID != "u3" && (!row.CreatedAt.Equal(before.CreatedAt) || row.Metadata[outbox.OriginMetadata] != before.Metadata[outbox.OriginMetadata]) {
				t.Errorf("it was created at %v, before at %v", row.CreatedAt, before.CreatedAt)
			}
			if row.UUID == "u1" && (row.Metadata["a"] != "b" || row.Metadata["\x00"] != "\xff") {
				t.Errorf("metadata is %v", row.Metadata)
			}
		}
		relay.settled(t, 3)
		if n := keptCount(t, db); n != 3 {
			t.Errorf("%d rows are kept, want 3: each once", n)
		}
	})
}

// Thousands of rows come back in the order of each key, also where two replay at a time
// and the relay is at work meanwhile.
func TestReplayKeepsTheOrderOfEachKey(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	db := testenv.DB(t)
	db.SetMaxOpenConns(20)
	const keys, each = 50, 100
	exec(t, db, `INSERT INTO oncemill.outbox (topic, uuid, ordering_key, payload)
		SELECT 't', i::text, CASE WHEN i % $1::int > 0 THEN ('key-' || i % $1::int)::bytea END, (i / $1::int)::text::bytea FROM generate_series(0, $1::int * $2::int - 1) i`, keys, each)
	sink := newRecorder(nil)
	relay := start(t, &outbox.Relay{DB: db, Sink: sink, Keep: time.Hour, Batch: 300})
	relay.settled(t, keys*each)
	sink.mu.Lock()
	sink.rows = nil
	sink.mu.Unlock()
	var replays sync.WaitGroup
	var sum [2]int64
	for i := range sum {
		replays.Go(func() {
			var err error
			if sum[i], err = (&outbox.Admin{DB: db}).Replay(t.Context(), outbox.Replay{Since: time.Unix(0, 0)}); err != nil {
				t.Error(err)
			}
		})
	}
	replays.Wait()
	relay.settled(t, int(sum[0]+sum[1]))
	if got := sum[0] + sum[1]; got < keys*each {
		t.Errorf("%d rows were put back, want %d", got, keys*each)
	}
	next, again := make(map[string]int), 0
	for _, row := range sink.published() {
		key := string(row.OrderingKey)
		var n int
		fmt.Sscan(string(row.Payload), &n)
		switch {
		case key == "":
		case n == next[key]:
			next[key]++
		case n < next[key]: // the other replay began later and had it put back once more
			again++
		default:
			t.Fatalf("%s: %d came where %d belongs", key, n, next[key])
		}
	}
	if len(next) != keys-1 {
		t.Errorf("%d keys came", len(next))
	}
	for key, n := range next {
		if n != each {
			t.Errorf("%s: %d came", key, n)
		}
	}
	t.Logf("%d and %d were put back, %d came once more", sum[0], sum[1], again)
}

// A replay that is cut off is gone on with: what was put back stays so, the rest does not
// get lost.
func TestAReplayThatIsCutOffIsGoneOnWith(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	db := testenv.DB(t)
	const total = 2500
	keep(t, db, total)
	ctx, cancel := context.WithCancel(t.Context())
	admin := &outbox.Admin{DB: db}
	n, err := admin.Replay(ctx, outbox.Replay{Since: time.Unix(0, 0), Progress: func(int64) { cancel() }})
	if err == nil || n != 1000 || rowCount(t, db) != 1000 || keptCount(t, db) != total-1000 {
		t.Fatalf("%d rows were put back, %d are in the outbox, %d are kept (%v)", n, rowCount(t, db), keptCount(t, db), err)
	}
	if n := replay(t, db, outbox.Replay{}); n != total-1000 || rowCount(t, db) != total {
		t.Errorf("%d rows were put back, %d are in the outbox", n, rowCount(t, db))
	}
	if n := value[int](t, db, `SELECT count(*) FROM (SELECT uuid::int - lag(uuid::int) OVER (ORDER BY id) AS step FROM oncemill.outbox) s WHERE step <> 1`); n != 0 {
		t.Errorf("%d are out of order", n)
	}
}

// keep fills the table of kept rows.
func keep(t *testing.T, db *sql.DB, n int) {
	t.Helper()
	exec(t, db, `INSERT INTO oncemill.published (published_at, id, dedup_id, topic, uuid, metadata, created_at)
		SELECT now() - interval '1 hour' + i / 100 * interval '1 ms', i, gen_random_uuid(), 't', i::text, '{}', now() FROM generate_series(1, $1) i ORDER BY random()`, n)
}

func TestReplayNamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	db := testenv.DB(t)
	admin := &outbox.Admin{DB: db}
	now := time.Now()
	for says, wrong := range map[string]outbox.Replay{
		"Replay.Since is not set": {},
		"must be after Since":     {Since: now, Until: now},
		"Replay.Topic":            {Since: now, Topic: "\x00"},
	} {
		if _, err := admin.Replay(t.Context(), wrong); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("error is %v, want one that says %s", err, says)
		}
	}
	toVersion5(t, db)
	if _, err := admin.Replay(t.Context(), outbox.Replay{Since: now}); !errors.Is(err, outbox.ErrSchema) || !strings.Contains(err.Error(), "oncemill migrate") {
		t.Errorf("error is %v", err)
	}
	relay := &outbox.Relay{DB: db, Sink: newRecorder(nil), Keep: time.Hour}
	if err := relay.Check(t.Context()); !errors.Is(err, outbox.ErrSchema) || !strings.Contains(err.Error(), "Relay.Keep") {
		t.Errorf("error is %v", err)
	}
}

// Rows go when they have been kept for long enough, whichever relay kept them, and however
// many there are.
func TestKeptRowsGoWhenTheirTimeIsOver(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	db := testenv.DB(t)
	const old = 3500
	keep(t, db, old)
	exec(t, db, `INSERT INTO oncemill.published (published_at, id, dedup_id, topic, uuid, metadata, created_at) VALUES ('-infinity', 0, gen_random_uuid(), 't', 'u', '{}', now())`)
	publish(t, db, "t", 10)
	relays := []*started{
		start(t, &outbox.Relay{DB: db, Sink: newRecorder(nil), Keep: 30 * time.Minute}),
		start(t, &outbox.Relay{DB: db, Sink: newRecorder(nil), Keep: 30 * time.Minute}),
	}
	poll(t, func() bool { return keptCount(t, db) == 10 && rowCount(t, db) == 0 })
	exec(t, db, `UPDATE oncemill.published SET published_at = published_at - interval '29 minutes 59 seconds'`)
	poll(t, func() bool { return keptCount(t, db) == 0 })
	for _, relay := range relays {
		must(t, relay.stop())
	}
}

// Deletion and keeping are one transaction.
func TestARowIsKeptIfAndOnlyIfItIsGone(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	db, _ := database(t)
	publish(t, db, "t", 120)
	exec(t, db, `DELETE FROM oncemill.outbox WHERE id IN (3, 5, 100)`) // runs of ids and single ones
	sink := newGate()
	relay := start(t, &outbox.Relay{DB: db, Sink: sink, Keep: time.Hour})
	first := receive(t, sink.held)
	terminateIdleInTransaction(t, db)
	first.answer <- nil
	second := receive(t, sink.held)
	if n, kept := rowCount(t, db), keptCount(t, db); n != 117 || kept != 0 {
		t.Errorf("%d rows in the outbox, %d kept", n, kept)
	}
	begun := value[time.Time](t, db, `SELECT clock_timestamp()`)
	second.answer <- nil
	relay.settled(t, 117)
	if n, kept := rowCount(t, db), keptCount(t, db); n != 0 || kept != 117 {
		t.Errorf("%d rows in the outbox, %d kept", n, kept)
	}
	// The time is one for all of a batch, after the broker has them.
	if n, at := value[int](t, db, `SELECT count(DISTINCT published_at) FROM oncemill.published`), value[time.Time](t, db, `SELECT min(published_at) FROM oncemill.published`); n != 1 || at.Before(begun) {
		t.Errorf("%d times, the first is %v, before %v", n, at, begun)
	}
	var ids bytes.Buffer
	rows, err := db.Query(`SELECT id FROM oncemill.published ORDER BY published_at, id LIMIT 4`)
	must(t, err)
	defer rows.Close()
	for rows.Next() {
		var id int
		must(t, rows.Scan(&id))
		fmt.Fprint(&ids, id, " ")
	}
	if ids.String() != "1 2 4 6 " {
		t.Errorf("ids are %s", &ids)
	}
}
