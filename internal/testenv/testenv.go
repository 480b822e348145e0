// Package testenv gives the tests of this module the real servers they run on.
//
// The servers are named by the environment: ONCEMILL_TEST_POSTGRES_URL is the
// URL of any database on a Postgres server, of a user who may create databases,
// and ONCEMILL_TEST_NATS_URL that of a NATS server with JetStream. `make test`
// starts both and sets the variables. Without them a test is skipped, or fails
// if ONCEMILL_TEST_REQUIRE=1.
//
// Every test gets a database of its own. The NATS server is shared: name
// streams and subjects after the test.
package testenv

import (
	"context"
	"database/sql"
	"os"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/oncemill/oncemill"
)

// The environment variables that name the servers.
const (
	PostgresVariable = "ONCEMILL_TEST_POSTGRES_URL"
	NATSVariable     = "ONCEMILL_TEST_NATS_URL"
	RequireVariable  = "ONCEMILL_TEST_REQUIRE" // "1": fail where a server is missing

	// PgBouncerVariable is the address, host:port, of a pooler in front of the Postgres
	// server. If it is set, tests go to their databases through it.
	PgBouncerVariable = "ONCEMILL_TEST_PGBOUNCER"

	// SchemaVariable is a schema version: if it is set, tests get databases with that one,
	// as a program does that was upgraded before its database.
	SchemaVariable = "ONCEMILL_TEST_SCHEMA"

	// Kafka is for the tests of the module testcontainers only.
	KafkaVariable        = "ONCEMILL_TEST_KAFKA_BROKERS" // host:port, separated by commas
	RequireKafkaVariable = "ONCEMILL_TEST_REQUIRE_KAFKA" // "1": fail where it is missing
)

// adminTimeout bounds the creation and the dropping of a test's database, on a
// machine that is busy with other tests.
const adminTimeout = time.Minute

// DB returns a lib/pq pool on a fresh database with Oncemill's schema in it. At
// the end of the test the pool is closed and the database dropped.
func DB(t testing.TB) *sql.DB {
	t.Helper()
	return Open(t, PostgresURL(t))
}

// Open returns a lib/pq pool on a database, closed at the end of the test.
func Open(t testing.TB, address string) *sql.DB {
	t.Helper()
	db, err := sql.Open("postgres", address)
	if err != nil {
		t.Fatalf("open the test's database: %v", err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// OpenByIndex is Open with connections as oncemill.PlanByIndex makes them.
func OpenByIndex(t testing.TB, address string) *sql.DB {
	t.Helper()
	connector, err := pq.NewConnector(address)
	if err != nil {
		t.Fatalf("open the test's database: %v", err)
	}
	db := sql.OpenDB(oncemill.PlanByIndex(connector))
	t.Cleanup(func() { db.Close() })
	return db
}

// Role makes a role that may do nothing in the database of a pool, not even log in. It is
// dropped at the end of the test, with its rights.
func Role(t testing.TB, db *sql.DB) string {
	t.Helper()
	var role string
	if err := db.QueryRow(`SELECT 'role_of_' || current_database()`).Scan(&role); err != nil {
		t.Fatalf("name a role: %v", err)
	}
	if _, err := db.Exec(`CREATE ROLE ` + role); err != nil {
		t.Fatalf("create the role %s: %v", role, err)
	}
	t.Cleanup(func() {
		// The pool may have one connection only, which the test has given the role.
		if _, err := db.Exec(`RESET ROLE; DROP OWNED BY ` + role + `; DROP ROLE ` + role); err != nil {
			t.Errorf("drop the role %s: %v", role, err)
		}
	})
	return role
}

// OpenAs is Open with the rights of a role. Through a pooler it does not work: see
// NeedsSession.
func OpenAs(t testing.TB, address, role string) *sql.DB {
	t.Helper()
	return Open(t, address+"&options=-crole%3D"+role)
}

// PostgresURL returns the URL of a fresh database with Oncemill's schema in it,
// which is dropped at the end of the test.
func PostgresURL(t testing.TB) string {
	t.Helper()
	return database(t, true)
}

// EmptyPostgresURL returns the URL of a fresh database with nothing in it, which
// is dropped at the end of the test.
func EmptyPostgresURL(t testing.TB) string {
	t.Helper()
	return database(t, false)
}

// NATSURL returns the URL of a NATS server with JetStream that all tests share.
func NATSURL(t testing.TB) string {
	t.Helper()
	return server(t, "NATS", NATSVariable)
}

func database(t testing.TB, migrated bool) string {
	t.Helper()
	admin := server(t, "Postgres", PostgresVariable)
	ctx, cancel := context.WithTimeout(context.Background(), adminTimeout)
	defer cancel()
	address, drop, err := CreateDatabase(ctx, admin, migrated)
	if err != nil {
		t.Fatalf("the Postgres server of %s: %v", PostgresVariable, err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), adminTimeout)
		defer cancel()
		if err := drop(ctx); err != nil {
			t.Errorf("drop the test's database: %v", err)
		}
	})
	if pooler := os.Getenv(PgBouncerVariable); pooler != "" {
		if address, err = throughPooler(ctx, address, pooler); err != nil {
			t.Fatal(err)
		}
	}
	return address
}

// server returns the address in an environment variable, and ends the test if
// there is none.
func server(t testing.TB, name, variable string) string {
	t.Helper()
	address := os.Getenv(variable)
	if address == "" {
		complain := t.Skipf
		if os.Getenv(RequireVariable) == "1" {
			complain = t.Fatalf
		}
		complain(`needs a %s server: run "make test", or set %s`, name, variable)
	}
	return address
}

// NeedsSession leaves a test out where connections go through a pooler of transactions,
// because it, not Oncemill, needs what that cannot give: a session of Postgres of its own,
// for settings at the connection's start, for what lasts longer than a transaction, or for
// being as quick.
func NeedsSession(t testing.TB, what string) {
	t.Helper()
	if os.Getenv(PgBouncerVariable) != "" {
		t.Skip("needs a session of its own: " + what)
	}
}

// NeedsSchema leaves a test out where databases have an older schema version, because what
// it tests is not available there.
func NeedsSchema(t testing.TB, version int) {
	t.Helper()
	at, err := schemaVersion()
	if err != nil {
		t.Fatal(err)
	}
	if at < version {
		t.Skipf("needs schema version %d, and databases have %d (%s)", version, at, SchemaVariable)
	}
}
