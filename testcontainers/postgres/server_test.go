package postgres_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/oncemill/oncemill/testcontainers/postgres"
)

func TestAKilledServerKeepsWhatWasCommitted(t *testing.T) {
	t.Parallel()
	server := start(t, postgres.Options{})
	db := open(t, server.URL(""))
	execute(t, db, "CREATE TABLE effects (id integer)")
	execute(t, db, "INSERT INTO effects VALUES (1)")
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.ExecContext(t.Context(), "INSERT INTO effects VALUES (2)"); err != nil {
		t.Fatal(err)
	}
	pid := query[int](t, db, "SELECT pg_backend_pid()")

	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if server.Running() {
		t.Error("the server still runs")
	}
	if syscall.Kill(pid, 0) == nil && !zombie(pid) {
		t.Errorf("the backend %d has survived", pid)
	}
	if err := tx.Commit(); err == nil {
		t.Error("a transaction was committed on a dead server")
	}
	address := server.URL("")
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if server.URL("") != address {
		t.Errorf("it is at %s now, and was at %s", server.URL(""), address)
	}
	eventually(t, "the pool has connected again", func() bool { return db.PingContext(t.Context()) == nil })
	if sum := query[int](t, db, "SELECT sum(id) FROM effects"); sum != 1 {
		t.Errorf("the rows add up to %d, not 1", sum)
	}
	if log, err := server.Log(); err != nil || !strings.Contains(log, "automatic recovery in progress") {
		t.Errorf("the log tells of no recovery: %v\n%s", err, log)
	}
}

func TestARestartedServerKeepsItsPortAndData(t *testing.T) {
	t.Parallel()
	server := start(t, postgres.Options{Volatile: true})
	db := open(t, server.URL(""))
	execute(t, db, "CREATE TABLE effects (id integer)")
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pool has connected again", func() bool { return db.PingContext(t.Context()) == nil })
	query[int](t, db, "SELECT count(*) FROM effects")
	if err := server.Start(t.Context()); err == nil {
		t.Error("a running server could be started")
	}
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := server.Stop(); err != nil {
		t.Errorf("stopping it again: %v", err)
	}
}

func TestAFrozenServerDoesNotAnswerUntilItIsThawed(t *testing.T) {
	t.Parallel()
	server := start(t, postgres.Options{Volatile: true})
	db := open(t, server.URL(""))
	query[int](t, db, "SELECT 1") // a connection in the pool
	if err := server.Freeze(); err != nil {
		t.Fatal(err)
	}
	answer := make(chan error, 1)
	go func() {
		_, err := db.ExecContext(context.WithoutCancel(t.Context()), "SELECT 1")
		answer <- err
	}()
	select {
	case err := <-answer:
		t.Fatalf("the frozen server answered: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	if err := server.Thaw(); err != nil {
		t.Fatal(err)
	}
	if err := <-answer; err != nil {
		t.Errorf("after the thaw: %v", err)
	}
}

func TestAFrozenServerCanBeStoppedAndClosed(t *testing.T) {
	t.Parallel()
	server := start(t, postgres.Options{Volatile: true})
	if err := server.Freeze(); err != nil {
		t.Fatal(err)
	}
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := server.Freeze(); err != nil {
		t.Fatal(err)
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	if err := server.Start(t.Context()); err == nil {
		t.Error("a closed server could be started")
	}
}

func TestSettingsReachTheServer(t *testing.T) {
	t.Parallel()
	server := start(t, postgres.Options{Volatile: true, Settings: map[string]string{
		"wal_level":        "logical",
		"application_name": `it's a \ test`,
	}})
	db := open(t, server.URL(""))
	for name, want := range map[string]string{
		"wal_level":        "logical",
		"application_name": `it's a \ test`,
		"max_connections":  "300",
		"fsync":            "off",
		"listen_addresses": "127.0.0.1",
	} {
		if got := query[string](t, db, "SHOW "+name); got != want {
			t.Errorf("%s is %q, not %q", name, got, want)
		}
	}
}

func TestAServerThatDoesNotStartSaysWhy(t *testing.T) {
	t.Parallel()
	_, err := postgres.Start(t.Context(), postgres.Options{Settings: map[string]string{"no_such_setting": "1"}})
	if err == nil || !strings.Contains(err.Error(), `unrecognized configuration parameter "no_such_setting"`) {
		t.Errorf("the error is %v", err)
	}
	_, err = postgres.Start(t.Context(), postgres.Options{Settings: map[string]string{"wal_level": "x\nfsync = off"}})
	if err == nil || !strings.Contains(err.Error(), "line break") {
		t.Errorf("the error is %v", err)
	}
}

func TestAStartThatIsGivenUpLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	impatience := errors.New("no time")
	cancel(impatience)
	dir := filepath.Join(openDir(t), "server")
	bin, err := postgres.Find(t.Context())
	if err != nil {
		t.Skip("needs an installed Postgres")
	}
	if _, err := postgres.Start(ctx, postgres.Options{Bin: bin, Dir: dir}); !errors.Is(err, impatience) {
		t.Errorf("the error is %v", err)
	}
}

func TestDataInAGivenDirectoryAreUsedAgain(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(openDir(t), "server")
	for run := range 2 {
		server, err := postgres.Start(t.Context(), postgres.Options{Dir: dir, Volatile: true})
		if err != nil {
			t.Fatal(err)
		}
		db := open(t, server.URL(""))
		if run == 0 {
			execute(t, db, "CREATE TABLE effects (id integer)")
		}
		query[int](t, db, "SELECT count(*) FROM effects")
		db.Close()
		if err := server.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "data", "PG_VERSION")); err != nil {
		t.Errorf("Close has removed a directory that was given: %v", err)
	}
}

func TestADirectoryThatTheServerCannotEnterIsNamed(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root runs the server as somebody else")
	}
	dir := filepath.Join(t.TempDir(), "closed", "server")
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := postgres.Start(t.Context(), postgres.Options{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), "cannot enter "+dir) {
		t.Errorf("the error is %v", err)
	}
}

func TestAServerAsksForItsPassword(t *testing.T) {
	t.Parallel()
	server := start(t, postgres.Options{Volatile: true})
	before, after, _ := strings.Cut(server.URL(""), "@")
	db := open(t, before[:strings.LastIndex(before, ":")]+":guess@"+after)
	if err := db.PingContext(t.Context()); err == nil || !strings.Contains(err.Error(), "password authentication failed") {
		t.Errorf("with a wrong password: %v", err)
	}
}

func TestClosingAKilledServerRemovesItsFiles(t *testing.T) {
	t.Parallel()
	server := start(t, postgres.Options{Volatile: true})
	dir := query[string](t, open(t, server.URL("")), "SHOW data_directory")
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := server.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Dir(dir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", filepath.Dir(dir), err)
	}
}
