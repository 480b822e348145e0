package conditions_test

import (
	"database/sql"
	"testing"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"
)

// While a session holds a snapshot, vacuum cannot remove the rows that were published,
// and whoever looks for the next ones has to step over them. The relay does not get
// slower by it: what a row costs is measured in pages of the table and its indexes
// that Postgres touches, not in time.
func TestAHeldSnapshotDoesNotSlowTheRelay(t *testing.T) {
	const total, factor = 300_000, 6 // searches from the bottom come in bursts
	for name, keys := range map[string]int{"without keys": 0, "with keys": 5000} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, func(cfg *natsjs.StreamConfig) { cfg.Storage = natsjs.MemoryStorage })
			// As large tables have; otherwise an autovacuum in between would count.
			s.exec(`ALTER TABLE oncemill.outbox SET (autovacuum_enabled = off)`)
			s.load("a", 0, total, keys)
			s.exec(`VACUUM (ANALYZE) oncemill.outbox`)
			s.exec(`SELECT pg_stat_reset()`)
			s.holdSnapshot()
			d := s.relay()
			first := s.awaitDeleted(total / 3)
			second := s.awaitDeleted(total * 2 / 3)
			s.awaitEmpty()
			last := s.awaitDeleted(total)
			d.stop()

			begin, end := first.perRow(work{}), last.perRow(second)
			t.Logf("%.1f pages for a row of the first third, %.1f of the last", begin, end)
			if end > factor*begin {
				t.Errorf("a row costs %.1f pages at the begin and %.1f at the end, want less than %d times as many", begin, end, factor)
			}
			if n := s.arrived(total, keys); n > 0 {
				t.Errorf("%d messages came twice", n)
			}
		})
	}
}

// holdSnapshot opens a transaction that sees all rows as they are now, until the test
// ends.
func (s *site) holdSnapshot() {
	s.t.Helper()
	tx, err := s.database.DB.BeginTx(within(s.t), &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	must(s.t, err)
	s.t.Cleanup(func() { _ = tx.Rollback() })
	var n int
	must(s.t, tx.QueryRow(`SELECT count(*) FROM oncemill.outbox`).Scan(&n))
}

// A work is what Postgres has done on the outbox.
type work struct {
	deleted int // rows
	pages   int // touched, of the table and its indexes
}

func (w work) perRow(since work) float64 {
	return float64(w.pages-since.pages) / float64(w.deleted-since.deleted)
}

// awaitDeleted waits until at least n rows are deleted, by Postgres's statistics. A
// session adds to them at the end of a transaction, about once a second.
func (s *site) awaitDeleted(n int) (w work) {
	s.t.Helper()
	until(s.t, "rows are deleted", endurance, func() bool {
		must(s.t, s.database.DB.QueryRow(`
			SELECT n_tup_del, heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read
			FROM pg_stat_user_tables JOIN pg_statio_user_tables USING (relid)
			WHERE relid = 'oncemill.outbox'::regclass`).Scan(&w.deleted, &w.pages))
		if w.deleted < n {
			time.Sleep(50 * time.Millisecond)
		}
		return w.deleted >= n
	})
	return w
}
