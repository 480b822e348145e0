package pgbouncer_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	"go.uber.org/goleak"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/pgbouncer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pooled returns the URL of a fresh database through a pooler.
func pooled(t *testing.T, settings map[string]string) string {
	t.Helper()
	database := testcontainers.Postgres(t)
	server, err := pgbouncer.Start(t.Context(), pgbouncer.Options{Upstream: database.URL, Settings: settings})
	if errors.Is(err, pgbouncer.ErrNotFound) && os.Getenv("ONCEMILL_TEST_REQUIRE_PGBOUNCER") != "1" {
		t.Skip(err)
	}
	must(t, err)
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Errorf("close PgBouncer: %v", err)
		}
	})
	u, err := url.Parse(database.URL)
	must(t, err)
	return server.URL(strings.TrimPrefix(u.Path, "/"))
}

func open(t *testing.T, driver, address string) *sql.DB {
	t.Helper()
	db, err := sql.Open(driver, address)
	must(t, err)
	t.Cleanup(func() { db.Close() })
	return db
}

func TestASessionServesAnotherClientAfterEachTransaction(t *testing.T) {
	t.Parallel()
	address := pooled(t, map[string]string{"default_pool_size": "1"})
	one, other := open(t, "postgres", address), open(t, "pgx", address)
	var pids [2]int
	for i, db := range []*sql.DB{one, other} {
		must(t, db.QueryRow(`SELECT pg_backend_pid()`).Scan(&pids[i]))
	}
	if pids[0] != pids[1] {
		t.Errorf("the sessions are %v, want the same", pids)
	}
}

// Far more messages than sessions: whoever has a session needs nothing that somebody has
// who waits for one. The statements are prepared for the first time by all at once.
func TestAProcessGoesOnWhereAllSessionsAreTaken(t *testing.T) {
	t.Parallel()
	for driver, parameters := range map[string]string{"postgres": "&binary_parameters=yes", "pgx": ""} {
		for _, batch := range []int{1, 16} {
			t.Run(fmt.Sprint(driver, " ", batch), func(t *testing.T) {
				t.Parallel()
				db := open(t, driver, pooled(t, map[string]string{"default_pool_size": "2"})+parameters)
				_, err := db.Exec(`CREATE TABLE effects (name text)`)
				must(t, err)
				ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
				defer cancel()
				in := &oncemill.Inbox{DB: db, Batch: batch}
				var wg sync.WaitGroup
				for i := range 64 {
					wg.Go(func() {
						key := fmt.Sprint(i)
						err := in.Consumer("once").Once(ctx, key, func(ctx context.Context, tx oncemill.Tx) error {
							_, err := tx.ExecContext(ctx, `INSERT INTO effects VALUES ($1)`, key)
							return err
						})
						claim, errClaim := in.Consumer("guarded").Claim(ctx, key, oncemill.ClaimOptions{})
						if errClaim == nil {
							errClaim = claim.Settle(ctx, nil, nil)
						}
						if err := errors.Join(err, errClaim); err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
				var effects, claims int
				must(t, db.QueryRow(`SELECT (SELECT count(*) FROM effects), (SELECT count(*) FROM oncemill.claims WHERE outcome = 'settled')`).Scan(&effects, &claims))
				if effects != 64 || claims != 128 {
					t.Errorf("%d effects and %d claims, want 64 and 128", effects, claims)
				}
			})
		}
	}
}

// What docs/operating.md says of settings in the connection string.
func TestSettingsInTheConnectionStringAreRefused(t *testing.T) {
	t.Parallel()
	address := pooled(t, nil)
	for _, driver := range []string{"postgres", "pgx"} {
		err := open(t, driver, address+"&idle_in_transaction_session_timeout=5000").Ping()
		if err == nil || !strings.Contains(err.Error(), "unsupported startup parameter") {
			t.Errorf("%s: got %v", driver, err)
		}
		must(t, open(t, driver, address+"&application_name=worker").Ping()) // one that it knows
	}
}

func TestFindSaysWhatIsMissing(t *testing.T) {
	old := filepath.Join(t.TempDir(), "pgbouncer")
	must(t, os.WriteFile(old, []byte("#!/bin/sh\necho PgBouncer 1.18.0\n"), 0o700))
	for bin, says := range map[string]string{
		old:         "version 1.18 is older than 1.21",
		"/bin/echo": "--version says",
		"/missing":  "no such file",
	} {
		t.Setenv(pgbouncer.BinVariable, bin)
		if _, err := pgbouncer.Find(t.Context()); err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), pgbouncer.BinVariable) {
			t.Errorf("%s: got %v, want one that says %q", bin, err, says)
		}
	}
	t.Setenv(pgbouncer.BinVariable, "")
	t.Setenv("PATH", "")
	if _, err := pgbouncer.Find(t.Context()); err != nil && !errors.Is(err, pgbouncer.ErrNotFound) {
		t.Errorf("got %v, want one that says what to install", err)
	}
}

func TestStartNamesAWrongUpstream(t *testing.T) {
	t.Parallel()
	if _, err := pgbouncer.Start(t.Context(), pgbouncer.Options{Upstream: "host=x"}); err == nil || !strings.Contains(err.Error(), "Options.Upstream must be a URL") {
		t.Errorf("got %v", err)
	}
}
