package oncemill_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	"go.uber.org/goleak"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fixture is a migrated database with a table for effects that has no
// constraints: an effect that happens twice is there twice.
type fixture struct {
	t   *testing.T
	url string
	db  *sql.DB
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{t: t, url: testenv.PostgresURL(t)}
	f.db = f.open("postgres", f.url)
	f.exec(`CREATE TABLE effects (name text)`)
	return f
}

// open opens the database with a driver: "postgres" is lib/pq, "pgx" is pgx.
func (f *fixture) open(driver, url string) *sql.DB {
	f.t.Helper()
	db, err := sql.Open(driver, url)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { db.Close() })
	return db
}

func (f *fixture) exec(query string, args ...any) {
	f.t.Helper()
	if _, err := f.db.Exec(query, args...); err != nil {
		f.t.Fatalf("%s: %v", query, err)
	}
}

func (f *fixture) count(query string, args ...any) int {
	f.t.Helper()
	var n int
	if err := f.db.QueryRow(query, args...).Scan(&n); err != nil {
		f.t.Fatalf("%s: %v", query, err)
	}
	return n
}

func (f *fixture) wantEffects(name string, want int) {
	f.t.Helper()
	if got := f.count(`SELECT count(*) FROM effects WHERE name = $1`, name); got != want {
		f.t.Errorf("effects of %q: got %d, want %d", name, got, want)
	}
}

// consumer is a consumer of a process of its own, as far as Oncemill can tell.
func (f *fixture) consumer() *oncemill.Consumer {
	return (&oncemill.Inbox{DB: f.db}).Consumer("test")
}

// effect is a handler that leaves one row.
func effect(name string) func(context.Context, oncemill.Tx) error {
	return func(ctx context.Context, tx oncemill.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO effects (name) VALUES ($1)`, name)
		return err
	}
}

// within is a context for what must not take long, so that a test that hangs
// says where.
func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func want(t *testing.T, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("got error %v, want %v", err, target)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantText(t *testing.T, err error, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("got error %v, want one that says %q", err, part)
		}
	}
}
