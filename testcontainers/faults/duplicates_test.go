package faults_test

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/own"
)

// Where no COMMIT waits for a standby, whether there is none or the session does not want
// it, a duplicate is not worth a disk flush.
func TestADuplicateWritesNothingWithoutASynchronousStandby(t *testing.T) {
	t.Parallel()
	for name, settings := range map[string]map[string]string{
		"none":  {},
		"local": {"synchronous_standby_names": "away", "synchronous_commit": "local"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			servers <- struct{}{}
			t.Cleanup(func() { <-servers })
			all := map[string]string{"autovacuum": "off", "bgwriter_lru_maxpages": "0", "checkpoint_timeout": "1h", "wal_level": "minimal", "max_wal_senders": "0"}
			for key, value := range settings {
				all[key] = value
			}
			server := own.Postgres(t, testcontainers.PostgresOptions{Volatile: true, Settings: all})
			db := testcontainers.DatabaseOn(t, server).DB
			for which, batch := range batches {
				consumer := (&oncemill.Inbox{DB: db, Batch: batch}).Consumer(which)
				deliverAll(t, consumer, 20) // and then once more: who reads first marks rows as committed
				deliverAll(t, consumer, 20)
				before := walPosition(t, db)
				deliverAll(t, consumer, 20)
				if after := walPosition(t, db); after != before {
					t.Errorf("%s: 20 duplicates wrote %d bytes of WAL", which, after-before)
				}
			}
		})
	}
}

func walPosition(t *testing.T, db *sql.DB) (bytes int64) {
	t.Helper()
	must(t, db.QueryRowContext(t.Context(), `SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint`).Scan(&bytes))
	return bytes
}

func deliverAll(t *testing.T, consumer *oncemill.Consumer, n int) {
	t.Helper()
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			if err := consumer.Once(t.Context(), fmt.Sprint(i), nothing); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

func nothing(context.Context, oncemill.Tx) error { return nil }

// BenchmarkDuplicates shows what it costs that duplicates wait for the standby, against a
// session that does not want it, and against new messages.
func BenchmarkDuplicates(b *testing.B) {
	both, err := testcontainers.StartPostgresPair(b.Context(), testcontainers.PostgresPairOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer both.Close()
	for _, load := range []struct{ batch, conns, callers int }{{1, 1, 1}, {1, 16, 16}, {1, 16, 256}, {128, 16, 256}} {
		for _, commit := range []string{"on", "local"} {
			db := testenv.Open(b, both.Primary().URL("")+"&synchronous_commit="+commit)
			db.SetMaxOpenConns(load.conns)
			db.SetMaxIdleConns(load.conns)
			if err := oncemill.Migrate(b.Context(), db, ""); err != nil {
				b.Fatal(err)
			}
			consumer := (&oncemill.Inbox{DB: db, Batch: load.batch}).Consumer(fmt.Sprintf("%d %d %s", load.batch, load.callers, commit))
			for _, query := range []string{
				fmt.Sprintf(`INSERT INTO oncemill.claims (consumer, key, outcome) SELECT '%s', n::text, 'settled' FROM generate_series(0, %d) AS n`, consumer.Name(), benchmarkKeys),
				`VACUUM ANALYZE oncemill.claims`,
			} {
				if _, err := db.ExecContext(b.Context(), query); err != nil {
					b.Fatal(err)
				}
			}
			for _, which := range []string{"new", "duplicate"} {
				b.Run(fmt.Sprintf("batch=%d/callers=%d/commit=%s/%s", load.batch, load.callers, commit, which), func(b *testing.B) {
					benchmarkOnce(b, consumer, load.callers, which == "new")
				})
			}
		}
	}
}

const benchmarkKeys = 5000 // so many that no two callers have the same one

var fresh atomic.Int64

// benchmarkOnce delivers what is new, or what was before.
func benchmarkOnce(b *testing.B, consumer *oncemill.Consumer, callers int, isNew bool) {
	var next atomic.Int64
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				key := fmt.Sprint(i % benchmarkKeys)
				if isNew {
					key = fmt.Sprint("n", fresh.Add(1))
				}
				if err := consumer.Once(b.Context(), key, nothing); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
}
