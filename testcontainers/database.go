package testcontainers

import (
	"context"
	"database/sql"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/testcontainers/internal/servers"
)

// A Database is a Postgres database that belongs to one test.
type Database struct {
	URL string  // for any driver, as a superuser
	DB  *sql.DB // a lib/pq pool on it
}

// How long a test waits for what it needs. The first one may have to wait for a
// download.
const (
	serverLimit   = 10 * time.Minute
	databaseLimit = time.Minute
)

// Postgres returns a fresh database on a real server, with Oncemill's schema in
// it. At the end of the test the pool is closed and the database dropped.
//
// The server is shared by all tests of the process. It starts with the first
// one that asks, which takes about a second, and ends with the process, however
// that ends. With ONCEMILL_TEST_POSTGRES_URL set the server named there is used
// instead.
func Postgres(t testing.TB) *Database {
	t.Helper()
	server, err := sharedServer()
	if err != nil {
		t.Fatalf("start a Postgres server for the tests: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), databaseLimit)
	defer cancel()
	address, drop, err := testenv.CreateDatabase(ctx, server.address, true)
	if err != nil {
		t.Fatalf("make a database for the test: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), databaseLimit)
		defer cancel()
		if err := drop(ctx); err != nil {
			t.Errorf("drop the test's database: %v", err)
		}
	})
	return &Database{URL: address, DB: testenv.Open(t, address)}
}

// A shared server is never stopped: it ends with the process. stop is kept so
// that the server is not garbage meanwhile.
type shared struct {
	address string
	stop    func() error
}

// sharedServer returns the server for all tests of this process.
var sharedServer = sync.OnceValues(func() (shared, error) {
	if address := os.Getenv(testenv.PostgresVariable); address != "" {
		return shared{address: address}, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), serverLimit)
	defer cancel()
	address, stop, err := servers.Postgres(ctx)
	return shared{address, stop}, err
})
