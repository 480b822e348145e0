package testenv_test

import (
	"context"
	"database/sql"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/lib/pq"
	"go.uber.org/goleak"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/schema"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEachTestHasADatabaseOfItsOwn(t *testing.T) {
	t.Parallel()
	first, second := testenv.DB(t), testenv.DB(t)
	execute(t, first, "CREATE TABLE mine (id integer)")
	execute(t, second, "CREATE TABLE mine (id integer)")
	if versions := count(t, first, "SELECT count(*) FROM oncemill.schema_version"); versions != schema.Version {
		t.Errorf("the fresh database is at schema version %d, not %d", versions, schema.Version)
	}
}

func TestAnEmptyDatabaseHasNoSchema(t *testing.T) {
	t.Parallel()
	db := testenv.Open(t, testenv.EmptyPostgresURL(t))
	if n := count(t, db, "SELECT count(*) FROM pg_namespace WHERE nspname = 'oncemill'"); n != 0 {
		t.Error("the empty database has the schema oncemill")
	}
}

func TestADatabaseIsDroppedWhileConnectionsAreOpen(t *testing.T) {
	t.Parallel()
	var address string
	var open *sql.DB
	t.Run("test", func(t *testing.T) {
		address = testenv.PostgresURL(t)
		open, _ = sql.Open("postgres", address) // Ping tells
		if err := open.Ping(); err != nil {
			t.Fatal(err)
		}
	})
	if open == nil {
		return // it was skipped
	}
	defer open.Close()

	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	admin := testenv.Open(t, os.Getenv(testenv.PostgresVariable))
	name := pq.QuoteLiteral(strings.Trim(u.Path, "/"))
	if n := count(t, admin, "SELECT count(*) FROM pg_database WHERE datname = "+name); n != 0 {
		t.Errorf("the database %s is still there", name)
	}
}

// Several test binaries start at once on one server; each wants the template.
func TestTheTemplateIsMadeOnce(t *testing.T) {
	t.Parallel()
	testenv.EmptyPostgresURL(t) // only where there are servers, like the others
	server := os.Getenv(testenv.PostgresVariable)
	errs := make(chan error)
	const callers = 8
	for range callers {
		go func() {
			_, drop, err := testenv.CreateDatabase(t.Context(), server, true)
			if err == nil {
				err = drop(context.WithoutCancel(t.Context()))
			}
			errs <- err
		}()
	}
	for range callers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestAServerAddressMustBeAURL(t *testing.T) {
	t.Parallel()
	testenv.EmptyPostgresURL(t) // only where there are servers, like the others
	_, _, err := testenv.CreateDatabase(t.Context(), "host=127.0.0.1 dbname=postgres", false)
	if err == nil {
		t.Error("an address that is not a URL was accepted")
	}
}

func execute(t *testing.T, db *sql.DB, statement string) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}

func count(t *testing.T, db *sql.DB, query string) (n int) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(), query).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
