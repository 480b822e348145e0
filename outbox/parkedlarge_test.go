package outbox_test

import (
	"testing"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
)

// In a table with many rows that wait, those that are parked are found by the index of
// parked rows, and what waits behind them in their keys' partitions. Status counts a part.
func TestParkedRowsAreFoundAmongManyThatWait(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	const total = 200_000
	exec(t, db, `INSERT INTO oncemill.outbox (topic, ordering_key) SELECT 't', ('key-' || i % 1000)::bytea FROM generate_series(1, $1) i`, total)
	exec(t, db, `UPDATE oncemill.outbox SET parked_at = now(), last_error = 'e' WHERE id IN (150000, 150001)`)
	admin := &outbox.Admin{DB: db}
	for _, analyzed := range []bool{false, true} {
		if analyzed {
			exec(t, db, `VACUUM ANALYZE oncemill.outbox`)
		}
		entries, err := admin.List(t.Context(), outbox.Filter{}, outbox.Entry{}, 500)
		must(t, err)
		if len(entries) != 2 || entries[0].Behind != 50 || entries[1].Behind != 49 {
			t.Errorf("entries are %+v", entries)
		}
		tx, err := db.Begin()
		must(t, err)
		_, err = tx.Exec(`SET LOCAL enable_seqscan = off`)
		must(t, err)
		// All of the table and its indexes is 5,000 pages, a partition's rows are on 2,000.
		if pages, plan := buffers(t, tx, admin.ListSQL(outbox.Filter{}, 500)); pages > 4500 {
			t.Errorf("analyzed: %v: %d pages for two rows:\n%s", analyzed, pages, plan)
		} else {
			t.Logf("analyzed: %v: %d pages", analyzed, pages)
		}
		must(t, tx.Rollback())
		s, err := admin.Status(t.Context())
		must(t, err)
		n, accuracy := s.Waiting.Rows, s.Waiting.Accuracy
		if good := accuracy == outbox.Estimate && n > total*8/10 && n < total*12/10 || !analyzed && accuracy == outbox.AtLeast && n >= 99_000; !good || s.Parked.Rows != 2 || s.Parked.Accuracy != outbox.Exact || s.Deferred.Accuracy != outbox.AtLeast {
			t.Errorf("analyzed: %v: status is %+v", analyzed, s)
		}
	}
}
