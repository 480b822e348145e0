package outbox_test

import (
	"testing"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
)

// In a table with many rows that wait, those that are parked are found by the index of
// parked rows, and what waits behind them in their keys' partitions. Status counts a part.
func TestParkedRowsAreFoundAmongManyThatWait(t *testing.T) {
	testenv.NeedsSchema(t, 6)
	t.Parallel()
	db := testenv.DB(t)
	const total = 200_000
	exec(t, db, `INSERT INTO oncemill.outbox (topic, ordering_key) SELECT 't', ('key-' || i % 1000)::bytea FROM generate_series(1, $1) i`, total)
	exec(t, db, `INSERT INTO oncemill.outbox (id, topic, ordering_key, parked_at) SELECT -i, 'first', ('key-' || i)::bytea, now() FROM generate_series(1, 400) i`)
	exec(t, db, `UPDATE oncemill.outbox SET parked_at = now(), last_error = 'e' WHERE id IN (150000, 150001)`)
	admin := &outbox.Admin{DB: db}
	for _, analyzed := range []bool{false, true} {
		if analyzed {
			exec(t, db, `VACUUM ANALYZE oncemill.outbox`)
		}
		entries, err := admin.List(t.Context(), outbox.Filter{Topic: "t"}, outbox.Entry{}, 500)
		must(t, err)
		if len(entries) != 2 || entries[0].Behind != 50 || entries[1].Behind != 49 {
			t.Errorf("entries are %+v", entries)
		}
		// Those of many keys are counted in one go through the table.
		many, err := admin.List(t.Context(), outbox.Filter{Topic: "first"}, outbox.Entry{}, 500)
		must(t, err)
		for _, e := range many {
			if e.Behind != total/1000 {
				t.Fatalf("%d rows wait behind %s, want %d", e.Behind, e.OrderingKey, total/1000)
			}
		}
		if len(many) != 400 {
			t.Errorf("%d entries", len(many))
		}
		tx, err := db.Begin()
		must(t, err)
		_, err = tx.Exec(`SET LOCAL enable_seqscan = off`)
		must(t, err)
		// All of the table and its indexes is 5,000 pages.
		if pages, plan := buffers(t, tx, admin.ListSQL(outbox.Filter{}, 500)); pages > 50 {
			t.Errorf("analyzed: %v: %d pages for two rows:\n%s", analyzed, pages, plan)
		} else {
			t.Logf("analyzed: %v: %d pages", analyzed, pages)
		}
		must(t, tx.Rollback())
		s, err := admin.Status(t.Context())
		must(t, err)
		n, accuracy := s.Waiting.Rows, s.Waiting.Accuracy
		if good := accuracy == outbox.Estimate && n > total*8/10 && n < total*12/10 || !analyzed && accuracy == outbox.AtLeast && n >= 99_000; !good || s.Parked.Rows != 402 || s.Parked.Accuracy != outbox.Exact || s.Deferred.Accuracy != outbox.AtLeast {
			t.Errorf("analyzed: %v: status is %+v", analyzed, s)
		}
	}
}
