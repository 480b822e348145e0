package faults_test

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/testcontainers"

	"github.com/oncemill/oncemill/testcontainers/internal/actor"
	"github.com/oncemill/oncemill/testcontainers/internal/own"
)

// README: Postgres fails over, with synchronous replication; nothing is
// acknowledged that the standby does not have.
func TestPostgresFailsOverToASynchronousStandby(t *testing.T) {
	t.Parallel()
	both := pair(t)
	database := testcontainers.DatabaseOn(t, both.Primary())
	broker := testcontainers.NATS(t).URL
	s := siteOn(t, database, broker)
	s.postgres = both.URL(nameOf(t, database))
	r := s.worker("worker")
	r.MaxErrors = 1
	worker := start(t, r)
	stop := s.load(2 * time.Millisecond)
	worker.Await("committed", 200)
	failed := worker.Times("failed")
	must(t, both.Failover(t.Context()))
	worker.Await("failed", failed+1) // it was under way
	s.db = testenv.Open(t, s.postgres)
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
func pair(t *testing.T) *testcontainers.PostgresPair {
	t.Helper()
	servers <- struct{}{}
	t.Cleanup(func() { <-servers })
	return own.PostgresPair(t, testcontainers.PostgresPairOptions{Volatile: true})
}

// nameOf returns the name of a database.
func nameOf(t *testing.T, database *testcontainers.Database) string {
	t.Helper()
	u, err := url.Parse(database.URL)
	must(t, err)
	return strings.TrimPrefix(u.Path, "/")
}
