package guard_test

import (
	"database/sql"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/own"
)

// A site is two guards on one Postgres, and a broker.
type site struct {
	t      *testing.T
	db     *sql.DB
	url    string // of the database
	guards []*daemon
	broker *broker
	caller *caller // asks the first guard first
	audits *caller // the same with the audit token
}

// auditToken is the operator's.
const auditToken = "an-audit-token-of-thirty-two-characters"

// newSite returns a site on a Postgres that nobody kills.
func newSite(t *testing.T, flags ...string) *site {
	t.Helper()
	return siteOn(t, testcontainers.Postgres(t), flags...)
}

// siteOn returns a site on a given database.
func siteOn(t *testing.T, database *testcontainers.Database, flags ...string) *site {
	t.Helper()
	s := &site{t: t, db: database.DB, url: database.URL, broker: newBroker(t)}
	file := filepath.Join(t.TempDir(), "token")
	must(t, os.WriteFile(file, []byte(auditToken+"\n"), 0o600))
	for i := range 2 {
		s.guards = append(s.guards, newDaemon(t, fmt.Sprint("guard ", i), database.URL, append([]string{"--audit-token-file", file}, flags...)...))
	}
	s.caller = s.newCaller(limit)
	s.audits = s.caller.with("X-SafeAgent-Audit-Token", auditToken)
	return s
}

func (s *site) newCaller(timeout time.Duration) *caller {
	c := newCaller(timeout, s.guards[0].url, s.guards[1].url)
	s.t.Cleanup(c.close)
	return c
}

// ownPostgres starts a Postgres server for one test.
func ownPostgres(t *testing.T) *testcontainers.PostgresServer { return ownPostgresIn(t, "") }

// ownPostgresIn is ownPostgres with its files in a directory.
func ownPostgresIn(t *testing.T, dir string) *testcontainers.PostgresServer {
	t.Helper()
	return own.Postgres(t, testcontainers.PostgresOptions{Dir: dir, Volatile: true})
}

// claims claims at one of the guards, and wants an answer.
func (s *site) claims(guard int, id string, more object) reply {
	s.t.Helper()
	r, err := s.audits.at(s.guards[guard].url).claim(within(s.t), id, more)
	must(s.t, err)
	return r
}

// proceeds is claims that wants to be told to go on.
func (s *site) proceeds(guard int, id string, more object) reply {
	s.t.Helper()
	r := s.claims(guard, id, more)
	if r.Status != "PROCEED" || r.Token == "" {
		s.t.Fatalf("%s: %s, want PROCEED", id, r)
	}
	return r
}

// ends ends a claim at one of the guards, and wants an answer.
func (s *site) ends(guard int, what, id, token string, body object) reply {
	s.t.Helper()
	r, err := s.audits.at(s.guards[guard].url).end(within(s.t), what, id, token, body)
	must(s.t, err)
	return r
}

// orders asks the broker, and wants an answer.
func (s *site) orders(id string) (status int) {
	s.t.Helper()
	status, err := order(s.caller.http, s.broker.url, id)
	must(s.t, err)
	return status
}

func wantReply(t testing.TB, got reply, code int, status string) {
	t.Helper()
	if got.code != code || got.Status != status {
		t.Errorf("got %s, want %d %s", got, code, status)
	}
}

func wantProblem(t testing.TB, got reply, status int, code string) {
	t.Helper()
	if got.code != status || got.Code != code {
		t.Errorf("got %s, want %d %s", got, status, code)
	}
}

// wantPlaced wants an order to have reached the broker so many times.
func (s *site) wantPlaced(id string, times int) {
	s.t.Helper()
	if n := s.broker.times(id); n != times {
		s.t.Errorf("%s was placed %d times, want %d", id, n, times)
	}
}

func (s *site) exec(statement string, args ...any) {
	s.t.Helper()
	_, err := s.db.Exec(statement, args...)
	must(s.t, err)
}

func (s *site) count(query string, args ...any) (n int) {
	s.t.Helper()
	if err := s.db.QueryRow(query, args...).Scan(&n); err != nil {
		s.t.Fatalf("%s: %v", query, err)
	}
	return n
}

// texts reads one column.
func (s *site) texts(query string, args ...any) (all []string) {
	s.t.Helper()
	rows, err := s.db.Query(query, args...)
	must(s.t, err)
	defer rows.Close()
	for rows.Next() {
		var one string
		must(s.t, rows.Scan(&one))
		all = append(all, one)
	}
	must(s.t, rows.Err())
	return all
}

// list reads all pages of a list with the audit token.
func (s *site) list(path string) []listed {
	s.t.Helper()
	all, err := s.audits.list(within(s.t), path)
	must(s.t, err)
	return all
}

// kinds are what /events says that happened to an id, in order.
func (s *site) kinds(id string) (kinds []string) {
	s.t.Helper()
	for _, e := range s.list("/events?request_id=" + url.QueryEscape(id)) {
		kinds = append(kinds, e.Kind)
	}
	slices.Reverse(kinds)
	return kinds
}

func (s *site) wantKinds(id string, want ...string) {
	s.t.Helper()
	if got := s.kinds(id); !slices.Equal(got, want) {
		s.t.Errorf("%s: the events are %q, want %q", id, got, want)
	}
}

// awaitDoubt waits until /audit and /events say that a claim is in doubt.
func (s *site) awaitDoubt(id string) (attempt int64) {
	s.t.Helper()
	eventually(s.t, id+" is in doubt", func() bool {
		for _, claim := range s.list("/audit?status=IN_DOUBT") {
			if claim.RequestID == id {
				attempt = claim.Attempt
				return claim.InDoubt && claim.Status == "PENDING"
			}
		}
		return false
	})
	eventually(s.t, "the events say so", func() bool { return slices.Contains(s.kinds(id), "in doubt") })
	return attempt
}

// audit wants Postgres to tell of every claim what can have happened to it: one holder at
// a time, with a token that no other attempt has, and one end. No order was placed twice.
func (s *site) audit() {
	s.t.Helper()
	for what, query := range map[string]string{
		"was claimed while it was held": `SELECT key FROM (
			SELECT consumer, key, kind, lag(kind) OVER (PARTITION BY consumer, key ORDER BY id) AS before
			FROM oncemill.events WHERE kind IN ('claimed', 'released', 'settled', 'failed')
		) AS e WHERE kind = 'claimed' AND before <> 'released'`,
		"ended without a claim": `SELECT key FROM (
			SELECT consumer, key, kind, lag(kind) OVER (PARTITION BY consumer, key ORDER BY id) AS before
			FROM oncemill.events WHERE kind IN ('claimed', 'released', 'settled', 'failed')
		) AS e WHERE kind <> 'claimed' AND before IS DISTINCT FROM 'claimed'`,
		"has a token that another has": `SELECT min(key) FROM oncemill.events WHERE kind = 'claimed' GROUP BY token HAVING count(*) > 1`,
		"ended in a way that the events do not have": `SELECT key FROM oncemill.claims AS c WHERE settled_at IS NOT NULL AND 1 <> (
			SELECT count(*) FROM oncemill.events AS e WHERE e.consumer = c.consumer AND e.key = c.key AND e.kind = c.outcome AND e.token = c.token)`,
		"is held in a way that the events do not have": `SELECT key FROM oncemill.claims AS c WHERE settled_at IS NULL AND 1 <> (
			SELECT count(*) FROM oncemill.events AS e WHERE e.consumer = c.consumer AND e.key = c.key AND e.kind = 'claimed' AND e.token = c.token)`,
		"is in the events but not in the claims": `SELECT DISTINCT key FROM oncemill.events AS e WHERE kind = 'claimed' AND NOT EXISTS (
			SELECT FROM oncemill.claims AS c WHERE c.consumer = e.consumer AND c.key = e.key) AND NOT EXISTS (
			SELECT FROM oncemill.events AS r WHERE r.consumer = e.consumer AND r.key = e.key AND r.kind = 'released' AND r.id > e.id)`,
	} {
		for _, key := range s.texts(query) {
			s.t.Errorf("%s %s:\n%s", key, what, s.history(key))
		}
	}
	ledger := s.broker.ledger()
	for _, id := range slices.Sorted(maps.Keys(ledger)) {
		if ledger[id] != 1 {
			s.t.Errorf("%s was placed %d times:\n%s", id, ledger[id], s.history(id))
		}
	}
}

// history is what happened to a key, for people.
func (s *site) history(key string) string {
	return strings.Join(s.texts(`SELECT concat_ws(' ', at, kind, token, actor, note) FROM oncemill.events WHERE key = $1 ORDER BY id`, key), "\n")
}
