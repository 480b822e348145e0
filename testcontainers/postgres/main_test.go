package postgres_test

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/oncemill/oncemill/testcontainers/postgres"
)

// parentVariable makes the test binary play a program that starts a server and
// is then killed. Its value says what to do with the server.
const parentVariable = "ONCEMILL_TEST_PARENT"

func TestMain(m *testing.M) {
	if what := os.Getenv(parentVariable); what != "" {
		parent(what)
		return
	}
	goleak.VerifyTestMain(m)
}

// parent starts a server, prints its URL, does what it is told to once it is
// told a line, says so, and waits to be killed.
func parent(what string) {
	server, err := postgres.Start(context.Background(), postgres.Options{Volatile: true})
	if err == nil {
		fmt.Println(server.URL(""))
		lines := bufio.NewScanner(os.Stdin)
		lines.Scan()
		if what == "frozen" {
			err = server.Freeze()
		}
		if err == nil {
			fmt.Println("ready")
			lines.Scan() // the end of the input, if the test ends early
		}
	}
	fmt.Fprintln(os.Stderr, "parent:", err)
	os.Exit(1)
}

// start starts a server that is closed at the end of the test.
func start(t *testing.T, options postgres.Options) *postgres.Server {
	t.Helper()
	server, err := postgres.Start(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Errorf("close the server: %v", err)
		}
	})
	return server
}

// open returns a pool on the server's maintenance database.
func open(t *testing.T, address string) *sql.DB {
	t.Helper()
	db, err := sql.Open("postgres", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// openDir returns a temporary directory that the server's user can enter.
func openDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func execute(t *testing.T, db *sql.DB, statement string, args ...any) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), statement, args...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func query[T any](t *testing.T, db *sql.DB, statement string) (value T) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(), statement).Scan(&value); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	return value
}

// eventually waits until something that gives no signal has become true.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("still not so: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
