package outbox_test

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
)

// parkSome fills the outbox: two keys whose first rows are parked, with rows behind them,
// a deferred row of a third key, and a parked row without a key.
func parkSome(t *testing.T, db *sql.DB) {
	t.Helper()
	exec(t, db, `
		INSERT INTO oncemill.outbox (id, topic, uuid, ordering_key, payload, attempts, parked_at, not_before, last_error) VALUES
		(1, 'orders.eu', 'u1', 'a', 'one', 3, '2026-01-01Z', NULL, 'message refused: payload of 2 MB'),
		(2, 'orders.us', 'u2', '\x00ff', 'two', 1, '2026-01-02Z', '2026-01-01Z', 'message refused: no such subject'),
		(3, 'orders.eu', 'u3', 'a', '3', 0, NULL, NULL, NULL),
		(4, 'orders.eu', 'u4', '\x00ff', '4', 0, NULL, NULL, NULL),
		(5, 'a_b', 'u5', NULL, NULL, 1, '2026-01-03Z', NULL, 'message refused: payload of 2 MB'),
		(6, 'axb', 'u6', 'd', '6', 2, NULL, 'infinity', 'later'),
		(7, 'orders.eu', 'u7', 'd', '7', 0, NULL, NULL, NULL),
		(8, 'orders.eu', 'u8', 'a', '8', 1, '2026-01-04Z', NULL, 'message refused: payload of 2 MB'),
		(9, 'orders.eu', 'u9', 'a', '9', 0, NULL, NULL, NULL)`)
	exec(t, db, `SELECT setval(pg_get_serial_sequence('oncemill.outbox', 'id'), 9)`)
}

func entryIDs(entries []outbox.Entry) (all []int64) {
	for _, e := range entries {
		all = append(all, e.ID)
	}
	return all
}

func TestListShowsWhatIsParkedAndWhatWaitsBehindIt(t *testing.T) {
	t.Parallel()
	eachDriver(t, func(t *testing.T, db *sql.DB, _ string) {
		parkSome(t, db)
		admin := &outbox.Admin{DB: db}
		must(t, admin.Check(t.Context()))
		all, err := admin.List(t.Context(), outbox.Filter{}, outbox.Entry{}, 100)
		must(t, err)
		if got := entryIDs(all); !slices.Equal(got, []int64{1, 2, 5, 8}) {
			t.Fatalf("ids are %v", got)
		}
		behind := []int64{3, 1, 0, 1}
		for i, e := range all {
			if e.Behind != behind[i] {
				t.Errorf("%d: %d rows wait behind it, want %d", e.ID, e.Behind, behind[i])
			}
		}
		first := all[0]
		if first.Topic != "orders.eu" || first.UUID != "u1" || string(first.OrderingKey) != "a" || first.Attempts != 3 || first.Size != 3 || len(first.DedupID) != 36 ||
			first.State != outbox.Parked || first.Error != "message refused: payload of 2 MB" || !first.Since.Equal(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)) {
			t.Errorf("entry is %+v", first)
		}
		if all[2].OrderingKey != nil || !bytes.Equal(all[1].OrderingKey, []byte("\x00\xff")) {
			t.Errorf("keys are %q", []any{all[1].OrderingKey, all[2].OrderingKey})
		}
		var paged []int64
		for after := (outbox.Entry{}); ; {
			page, err := admin.List(t.Context(), outbox.Filter{}, after, 1)
			must(t, err)
			if len(page) == 0 {
				break
			}
			if i := len(paged); page[0].Behind != behind[i] {
				t.Errorf("%d: %d rows wait behind it, want %d", page[0].ID, page[0].Behind, behind[i])
			}
			after = page[0]
			paged = append(paged, after.ID)
		}
		if !slices.Equal(paged, entryIDs(all)) {
			t.Errorf("pages are %v", paged)
		}
	})
}

func TestFiltersSayWhichRowsAreMeant(t *testing.T) {
	testenv.NeedsSchema(t, 6)
	t.Parallel()
	for _, old := range []bool{false, true} {
		t.Run(fmt.Sprintf("schema 5: %v", old), func(t *testing.T) {
			t.Parallel()
			db := testenv.DB(t)
			parkSome(t, db)
			if old {
				toVersion5(t, db)
			}
			admin := &outbox.Admin{DB: db}
			for _, test := range []struct {
				filter outbox.Filter
				want   []int64
			}{
				{outbox.Filter{}, []int64{1, 2, 5, 8}},
				{outbox.Filter{State: outbox.Deferred}, []int64{6}},
				{outbox.Filter{State: outbox.Deferred, Topic: "a_b"}, nil},
				{outbox.Filter{Topic: "orders.eu"}, []int64{1, 8}},
				{outbox.Filter{Topic: "orders.*"}, []int64{1, 2, 8}},
				{outbox.Filter{Topic: "*_*"}, []int64{5}},
				{outbox.Filter{Topic: "orders.%"}, nil},
				{outbox.Filter{Topic: `*\*`}, nil},
				{outbox.Filter{Key: []byte("a")}, []int64{1, 8}},
				{outbox.Filter{Key: []byte("\x00\xff")}, []int64{2}},
				{outbox.Filter{Key: []byte{}}, nil},
				{outbox.Filter{Error: "2 MB"}, []int64{1, 5, 8}},
				{outbox.Filter{Error: "%"}, nil},
				{outbox.Filter{ID: 5}, []int64{5}},
				{outbox.Filter{ID: 3}, nil},
				{outbox.Filter{Topic: "orders.*", Key: []byte("a"), Error: "refused", ID: 8}, []int64{8}},
			} {
				found, err := admin.List(t.Context(), test.filter, outbox.Entry{}, 100)
				must(t, err)
				n, err := admin.Count(t.Context(), test.filter)
				must(t, err)
				if got := entryIDs(found); !slices.Equal(got, test.want) || n != int64(len(test.want)) {
					t.Errorf("%+v: got %v and a count of %d, want %v", test.filter, got, n, test.want)
				}
			}
			for _, wrong := range []outbox.Filter{{State: "odd"}, {State: outbox.Scheduled, Error: "e"}, {Topic: "\x00"}, {Error: "\xff"}} {
				if _, err := admin.List(t.Context(), wrong, outbox.Entry{}, 1); err == nil || !strings.Contains(err.Error(), "Filter.") {
					t.Errorf("%+v: error is %v", wrong, err)
				}
			}
		})
	}
}

func TestScheduledRowsAreListedInTheOrderOfTheirTimes(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	eachDriver(t, func(t *testing.T, db *sql.DB, _ string) {
		exec(t, db, `INSERT INTO oncemill.scheduled (topic, deliver_after, payload) VALUES
			('t', 'infinity', ''), ('t', '2099-01-02Z', 'ab'), ('t', '2099-01-01Z', ''), ('t', 'infinity', ''), ('t', '-infinity', '')`)
		admin, filter := &outbox.Admin{DB: db}, outbox.Filter{State: outbox.Scheduled}
		var got []int64
		for after := (outbox.Entry{}); ; {
			page, err := admin.List(t.Context(), filter, after, 1)
			must(t, err)
			if len(page) == 0 {
				break
			}
			after = page[0]
			got = append(got, after.ID)
		}
		if want := []int64{5, 3, 2, 1, 4}; !slices.Equal(got, want) {
			t.Errorf("ids are %v, want %v", got, want)
		}
		toVersion5(t, db)
		if _, err := admin.List(t.Context(), filter, outbox.Entry{}, 1); !errors.Is(err, outbox.ErrSchema) {
			t.Errorf("error is %v", err)
		}
	})
}

func TestSummaryGroupsByTopicAndError(t *testing.T) {
	t.Parallel()
	eachDriver(t, func(t *testing.T, db *sql.DB, _ string) {
		parkSome(t, db)
		exec(t, db, `UPDATE oncemill.outbox SET last_error = 'message refused: payload of 11 MB' WHERE id = 8`)
		found, groups, rows, err := (&outbox.Admin{DB: db}).Summary(t.Context(), outbox.Filter{}, 2)
		must(t, err)
		if groups != 3 || rows != 4 || len(found) != 2 {
			t.Fatalf("%d groups, %d rows: %+v", groups, rows, found)
		}
		if g := found[0]; g.Topic != "orders.eu" || g.Rows != 2 || !strings.HasPrefix(g.Error, "message refused: payload of ") || g.First.Day() != 1 || g.Last.Day() != 4 {
			t.Errorf("the largest group is %+v", g)
		}
	})
}

// An operator retries; the relay publishes what was parked, in the order of each key, under
// dedup ids that the broker does not know.
func TestRetrySendsWhatWasParkedInTheOrderOfItsKey(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "LISTEN")
	eachDriver(t, func(t *testing.T, db *sql.DB, address string) {
		parkSome(t, db)
		dedupIDs := func() map[int64]string {
			all := make(map[int64]string)
			rows, err := db.Query(`SELECT id, dedup_id::text FROM oncemill.outbox`)
			must(t, err)
			defer rows.Close()
			for rows.Next() {
				var id int64
				var dedupID string
				must(t, rows.Scan(&id, &dedupID))
				all[id] = dedupID
			}
			return all
		}
		before := dedupIDs()
		listener := pq.NewListener(address, time.Second, time.Second, nil)
		t.Cleanup(func() { listener.Close() })
		must(t, listener.Listen(outbox.Channel("")))
		admin := &outbox.Admin{DB: db}
		changed, err := admin.Retry(t.Context(), outbox.Filter{Topic: "orders.*"})
		must(t, err)
		if changed != (outbox.Changed{Rows: 3}) {
			t.Errorf("changed %+v", changed)
		}
		receive(t, listener.Notify)
		changed, err = admin.Retry(t.Context(), outbox.Filter{State: outbox.Deferred})
		must(t, err)
		if changed.Rows != 1 {
			t.Errorf("changed %+v", changed)
		}
		receive(t, listener.Notify)
		if n := len(listener.Notify); n != 0 {
			t.Errorf("%d notifications too many", n)
		}
		for id, dedupID := range dedupIDs() {
			if fresh := dedupID != before[id]; fresh != slices.Contains([]int64{1, 2, 8}, id) {
				t.Errorf("%d: a fresh dedup id: %v", id, fresh)
			}
		}
		if n := value[int](t, db, `SELECT count(*) FROM oncemill.outbox WHERE parked_at IS NULL AND not_before IS NULL AND attempts = 0`); n != 8 {
			t.Errorf("%d rows are to be sent, want 8", n)
		}
		sink := newRecorder(nil)
		start(t, &outbox.Relay{DB: db, Sink: sink})
		last := make(map[string]int64)
		for range 8 {
			row := sink.next(t)
			if key := string(row.OrderingKey); row.ID <= last[key] {
				t.Errorf("%d came after %d", row.ID, last[key])
			} else {
				last[key] = row.ID
			}
		}
	})
}

// Thousands of rows are changed in transactions of 1,000, and what somebody holds is left
// out and counted.
func TestRetryTakesManyRowsAndWaitsForNobody(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	exec(t, db, `INSERT INTO oncemill.outbox (topic, parked_at, attempts) SELECT 't', now(), 1 FROM generate_series(1, 2500)`)
	exec(t, db, `CREATE TABLE changed (tx xid8); CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			INSERT INTO changed VALUES (pg_current_xact_id()); RETURN NEW; END $$;
		CREATE TRIGGER note AFTER UPDATE ON oncemill.outbox FOR EACH ROW EXECUTE FUNCTION note()`)
	holder, err := db.Begin()
	must(t, err)
	defer holder.Rollback()
	_, err = holder.Exec(`SELECT FROM oncemill.outbox WHERE id IN (1, 1000, 1500) FOR UPDATE`)
	must(t, err)
	changed, err := (&outbox.Admin{DB: db}).Retry(t.Context(), outbox.Filter{})
	must(t, err)
	if changed != (outbox.Changed{Rows: 2497, Skipped: 3}) {
		t.Errorf("changed %+v", changed)
	}
	if n, most := value[int](t, db, `SELECT count(DISTINCT tx) FROM changed`), value[int](t, db, `SELECT max(n) FROM (SELECT count(*) AS n FROM changed GROUP BY tx) s`); n != 3 || most > 1000 {
		t.Errorf("%d transactions of at most %d rows", n, most)
	}
	if n := value[int](t, db, `SELECT count(*) FROM oncemill.outbox WHERE parked_at IS NOT NULL`); n != 3 {
		t.Errorf("%d rows are parked", n)
	}
}

// What is dropped is handed over before, and the rows that waited behind it go on.
func TestDropHandsOverWhatItDeletes(t *testing.T) {
	t.Parallel()
	eachDriver(t, func(t *testing.T, db *sql.DB, _ string) {
		parkSome(t, db)
		exec(t, db, `UPDATE oncemill.outbox SET metadata = '{"oncemill:base64": 1}' WHERE id = 2`)
		exec(t, db, `UPDATE oncemill.outbox SET metadata = '{"a": "b"}' WHERE id = 1`)
		admin := &outbox.Admin{DB: db}
		kept := make(map[int64]outbox.Entry)
		keep := func(e outbox.Entry) error {
			kept[e.ID] = e
			return nil
		}
		full := errors.New("disk full")
		changed, err := admin.Drop(t.Context(), outbox.Filter{}, func(outbox.Entry) error { return full })
		if !errors.Is(err, full) || changed.Rows != 0 || rowCount(t, db) != 9 {
			t.Errorf("changed %+v, %v", changed, err)
		}
		for _, test := range []struct {
			filter outbox.Filter
			want   outbox.Changed
		}{
			{outbox.Filter{ID: 1}, outbox.Changed{Rows: 1, GoOn: 1}}, // 3; 9 waits behind 8
			{outbox.Filter{State: outbox.Deferred}, outbox.Changed{Rows: 1, GoOn: 1}},
			{outbox.Filter{Topic: "a*"}, outbox.Changed{Rows: 1}},
			{outbox.Filter{}, outbox.Changed{Rows: 2, GoOn: 2}},
			{outbox.Filter{}, outbox.Changed{}},
		} {
			changed, err := admin.Drop(t.Context(), test.filter, keep)
			if err != nil || changed != test.want {
				t.Errorf("%+v: changed %+v, want %+v (%v)", test.filter, changed, test.want, err)
			}
		}
		if e := kept[1]; string(e.Payload) != "one" || e.Metadata["a"] != "b" || e.MetadataText != `{"a": "b"}` || e.Size != 3 || string(e.OrderingKey) != "a" || e.Error == "" {
			t.Errorf("entry is %+v", e)
		}
		if e := kept[2]; e.Metadata != nil || e.MetadataText != `{"oncemill:base64": 1}` || !bytes.Equal(e.OrderingKey, []byte("\x00\xff")) {
			t.Errorf("entry is %+v", e)
		}
		if e := kept[5]; e.Payload != nil || e.OrderingKey != nil {
			t.Errorf("entry is %+v", e)
		}
		if len(kept) != 5 || rowCount(t, db) != 4 {
			t.Errorf("%d were handed over, %d are left", len(kept), rowCount(t, db))
		}
		if _, err := admin.Drop(t.Context(), outbox.Filter{State: outbox.Scheduled}, nil); err == nil || !strings.Contains(err.Error(), "Cancel") {
			t.Errorf("error is %v", err)
		}
	})
}

// A row that goes from one operator's hands to another's is not changed twice.
func TestAnotherOperatorsChangesAreSeen(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	exec(t, db, `INSERT INTO oncemill.outbox (topic, parked_at) SELECT 't', now() FROM generate_series(1, 3000)`)
	admin := &outbox.Admin{DB: db}
	sums := make(chan outbox.Changed)
	for i := range 4 {
		go func() {
			var c outbox.Changed
			var err error
			if i%2 == 0 {
				c, err = admin.Retry(t.Context(), outbox.Filter{})
			} else {
				c, err = admin.Drop(t.Context(), outbox.Filter{}, nil)
			}
			if err != nil {
				t.Error(err)
			}
			sums <- c
		}()
	}
	total := int64(0)
	for range 4 {
		total += receive(t, sums).Rows
	}
	if left := value[int64](t, db, `SELECT count(*) FROM oncemill.outbox WHERE parked_at IS NOT NULL`); total+left != 3000 {
		t.Errorf("%d were changed and %d are left, want 3000 together", total, left)
	}
}

func TestStatusCountsWhatThereIs(t *testing.T) {
	testenv.NeedsSchema(t, 6)
	t.Parallel()
	eachDriver(t, func(t *testing.T, db *sql.DB, _ string) {
		admin := &outbox.Admin{DB: db}
		empty, err := admin.Status(t.Context())
		must(t, err)
		zero := outbox.Count{Accuracy: outbox.Exact}
		if empty.Waiting != zero || *empty.Scheduled != zero || *empty.Published != zero || !empty.Oldest.IsZero() || !empty.NextDue.IsZero() || !empty.Kept.IsZero() {
			t.Errorf("status is %+v", empty)
		}
		parkSome(t, db)
		exec(t, db, `UPDATE oncemill.outbox SET created_at = '2020-01-01Z' WHERE parked_at IS NOT NULL`)
		exec(t, db, `UPDATE oncemill.outbox SET created_at = '2021-01-01Z' WHERE id = 4`)
		exec(t, db, `INSERT INTO oncemill.scheduled (topic, deliver_after) VALUES ('t', '2099-01-01Z'), ('t', 'infinity')`)
		exec(t, db, `INSERT INTO oncemill.published (published_at, id, dedup_id, topic, uuid, metadata, created_at) VALUES ('2026-01-01Z', 1, gen_random_uuid(), 't', 'u', '{}', now())`)
		s, err := admin.Status(t.Context())
		must(t, err)
		if s.Waiting.Rows != 4 || s.Parked.Rows != 4 || s.Deferred.Rows != 1 || s.Oldest.Year() != 2021 ||
			s.Scheduled.Rows != 2 || s.NextDue.Year() != 2099 || s.Published.Rows != 1 || s.Kept.Year() != 2026 {
			t.Errorf("status is %+v", s)
		}
		toVersion5(t, db)
		s, err = admin.Status(t.Context())
		must(t, err)
		if s.Parked.Rows != 4 || s.Scheduled != nil || s.Published != nil {
			t.Errorf("on schema 5 it is %+v", s)
		}
	})
}
