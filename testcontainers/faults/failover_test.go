package faults_test

import (
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/testcontainers"

	"github.com/oncemill/oncemill/testcontainers/internal/actor"
)

// README: Postgres fails over, with synchronous replication; nothing is
// acknowledged that the standby does not have.
func TestPostgresFailsOverToASynchronousStandby(t *testing.T) {
	t.Parallel()
	primary, standby := pair(t)
	database := testcontainers.DatabaseOn(t, primary)
	onStandby := beside(t, database.URL, standby)
	broker := testcontainers.NATS(t).URL
	s := siteOn(t, database, broker)
	s.postgres = either(t, database.URL, onStandby)
	r := s.worker("worker")
	r.MaxErrors = 1
	worker := start(t, r)
	stop := s.load(2 * time.Millisecond)
	worker.Await("committed", 200)
	must(t, primary.Kill())
	worker.Await("failed", 1) // it was under way

	// The standby has written all that was committed, but may have yet to apply
	// it, and then does not even know the database. A promotion waits for that.
	s.db = testenv.Open(t, standby.URL(""))
	s.exec(`SELECT pg_promote()`)
	s.db = testenv.Open(t, onStandby)
	worker.Await("committed", worker.Times("committed")+200)
	stop()
	s.billed(worker)
	s.owed()
	for _, line := range said(worker, "committed") {
		if n := s.count(`SELECT count(*) FROM effects WHERE key = $1`, keyOf(line)); n != 1 {
			t.Errorf("%s: %d effects on the new primary", line, n)
		}
	}
}

func said(p *actor.Process, word string) []string {
	lines, _ := p.Said(word)
	return lines
}

// pair starts a primary and a standby that every COMMIT waits for.
func pair(t *testing.T) (primary, standby *testcontainers.PostgresServer) {
	t.Helper()
	servers <- struct{}{}
	t.Cleanup(func() { <-servers })
	dir, err := os.MkdirTemp("", "oncemill-failover-")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755)) // the servers may run as another user
	first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
	begin := func(dir string, settings map[string]string) *testcontainers.PostgresServer {
		server, err := testcontainers.StartPostgres(t.Context(), testcontainers.PostgresOptions{Dir: dir, Volatile: true, Settings: settings})
		must(t, err)
		t.Cleanup(func() {
			if err := server.Close(); err != nil {
				t.Errorf("close Postgres: %v", err)
			}
		})
		return server
	}
	// Not every Postgres comes with pg_basebackup. The files of a server that is
	// not running are as good.
	primary = begin(first, map[string]string{"synchronous_standby_names": "*"})
	must(t, primary.Stop())
	if out, err := exec.Command("cp", "-a", first, second).CombinedOutput(); err != nil {
		t.Fatalf("copy the data: %v: %s", err, out)
	}
	must(t, os.WriteFile(filepath.Join(second, "data", "standby.signal"), nil, 0o644))
	must(t, primary.Start(t.Context()))
	standby = begin(second, map[string]string{
		"primary_conninfo":            conninfo(t, primary),
		"wal_retrieve_retry_interval": "100ms", // so that it notices soon that it is promoted
	})
	return primary, standby
}

// conninfo is a server's address for a standby.
func conninfo(t *testing.T, server *testcontainers.PostgresServer) string {
	t.Helper()
	u, err := url.Parse(server.URL(""))
	must(t, err)
	password, _ := u.User.Password()
	return fmt.Sprintf("host=%s port=%s user=%s password=%s application_name=standby", u.Hostname(), u.Port(), u.User.Username(), password)
}

// beside returns the URL of a database on another server.
func beside(t *testing.T, address string, server *testcontainers.PostgresServer) string {
	t.Helper()
	u, err := url.Parse(address)
	must(t, err)
	u.Host = fmt.Sprintf("127.0.0.1:%d", server.Port())
	return u.String()
}

// either returns the URL of a database on whichever of two servers takes writes.
// lib/pq wants several hosts as parameters, not in front of the path.
func either(t *testing.T, one, other string) string {
	t.Helper()
	u, err := url.Parse(one)
	must(t, err)
	o, err := url.Parse(other)
	must(t, err)
	query := u.Query()
	query.Set("host", u.Hostname()+","+o.Hostname())
	query.Set("port", u.Port()+","+o.Port())
	query.Set("target_session_attrs", "read-write")
	u.Host, u.RawQuery = "", query.Encode()
	return u.String()
}
