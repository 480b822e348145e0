package guard_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oncemill/oncemill/testcontainers"
)

// wantUnavailable wants a guard to say of everything that cannot be, why, and when to come
// again.
func (s *site) wantUnavailable(reason string) {
	s.t.Helper()
	eventually(s.t, "/readyz knows it", func() bool { // what it knows is up to a second old
		return s.readyzIs(0, http.StatusServiceUnavailable) && s.readyzIs(1, http.StatusServiceUnavailable)
	})
	for _, guard := range s.guards {
		for _, request := range []struct{ method, path, body string }{
			{http.MethodPost, "/claim", `{"request_id": "in-an-outage", "action": "order"}`},
			{http.MethodPost, "/claim", `{"agent_id": "a", "action_type": "b", "scope": "in-an-outage"}`},
			{http.MethodGet, "/audit", ""},
			{http.MethodGet, "/readyz", ""},
		} {
			if request.method == http.MethodGet && reason != down {
				continue // what can be read is read, and /readyz says it in its own way
			}
			r, err := s.audits.once(within(s.t), guard.url, request.method, request.path, "", []byte(request.body))
			must(s.t, err)
			var detail string
			_ = json.Unmarshal(r.Detail, &detail)
			again, err := strconv.Atoi(r.header.Get("Retry-After"))
			if r.code != http.StatusServiceUnavailable || r.Code != "unavailable" || !strings.Contains(detail, reason) || err != nil || again < 1 {
				s.t.Errorf("%s %s at %s: %s, Retry-After %d; want 503 and %q", request.method, request.path, guard.name, r, again, reason)
			}
			for _, secret := range []string{"postgres", "5432", "127.0.0.1", "password", "dial"} {
				if strings.Contains(detail, secret) {
					s.t.Errorf("a stranger is told %q", detail)
				}
			}
		}
		r, err := s.caller.once(within(s.t), guard.url, http.MethodGet, "/health", "", nil)
		must(s.t, err)
		wantReply(s.t, r, 200, "ok")
	}
}

const down = "the database is not available"

// recovers waits until the guards serve again, without help.
func (s *site) recovers() {
	s.t.Helper()
	for i, guard := range s.guards {
		eventually(s.t, guard.name+" is ready", func() bool {
			r, err := s.caller.once(within(s.t), guard.url, http.MethodGet, "/readyz", "", nil)
			return err == nil && r.code == http.StatusOK
		}, guard.logged)
		for nth := range 20 { // over all its connections
			id := "afterwards-" + strconv.Itoa(100*i+nth)
			r := s.proceeds(i, id, nil)
			wantReply(s.t, s.ends(1-i, "settle", id, r.Token, object{"result": object{}}), 200, "committed")
		}
	}
}

// Postgres is killed, and later restarted, under load. Meanwhile every claim is answered
// 503; whatever was answered with 200 is there afterwards; and nobody restarts a guard.
func TestPostgresRestartedUnderLoad(t *testing.T) {
	t.Parallel()
	server := ownPostgres(t)
	s := siteOn(t, testcontainers.DatabaseOn(t, server))
	c := newCrowd(s, 8, limit, s.guards[0].url, s.guards[1].url)
	enough := make(chan struct{})
	fed := make(chan int)
	go func() {
		for ids := 0; ; ids++ {
			select {
			case <-enough:
				fed <- ids
				return
			case c.tasks <- ids:
				c.tasks <- ids
			}
		}
	}()
	c.await(100)
	must(t, server.Kill())
	s.wantUnavailable(down)
	must(t, server.Start(within(t)))
	c.await(c.heard() + 100)
	must(t, server.Restart(within(t)))
	c.await(c.heard() + 100)
	close(enough)
	ids := <-fed
	c.stop()
	c.balance(ids)
	s.recovers()
	s.audit()
}

// Postgres takes no more connections from the guards.
func TestPoolExhausted(t *testing.T) {
	t.Parallel()
	server := ownPostgres(t)
	database := testcontainers.DatabaseOn(t, server)
	password := rand.Text()
	for _, statement := range []string{
		`CREATE ROLE guards LOGIN PASSWORD '` + password + `'`,
		`GRANT USAGE ON SCHEMA oncemill TO guards`,
		`GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA oncemill TO guards`,
		`GRANT USAGE ON ALL SEQUENCES IN SCHEMA oncemill TO guards`,
	} {
		_, err := database.DB.Exec(statement)
		must(t, err)
	}
	u, err := url.Parse(database.URL)
	must(t, err)
	u.User = url.UserPassword("guards", password)
	s := siteOn(t, &testcontainers.Database{URL: u.String(), DB: database.DB})
	s.recovers()
	s.exec(`DELETE FROM oncemill.claims`)
	s.exec(`DELETE FROM oncemill.events`)
	s.exec(`ALTER ROLE guards CONNECTION LIMIT 0`)
	s.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'guards'`)
	eventually(t, "the guards have no connection", func() bool {
		return s.count(`SELECT count(*) FROM pg_stat_activity WHERE usename = 'guards'`) == 0
	})
	s.wantUnavailable(down)
	s.exec(`ALTER ROLE guards CONNECTION LIMIT -1`)
	s.recovers()
	if n := s.count(`SELECT count(*) FROM oncemill.claims WHERE key LIKE '%in-an-outage'`); n != 0 {
		t.Errorf("%d claims were made in the outage", n)
	}
	s.audit()
}

// The guards' own connections are all at work, with one that waits for a lock: who comes
// then is answered 503 in time, and no claim is made for who has gone.
func TestAllConnectionsAreAtWork(t *testing.T) {
	t.Parallel()
	s := newSite(t, "--connections", "2", "--timeout", "1s")
	tx, err := s.db.Begin()
	must(t, err)
	_, err = tx.Exec(`LOCK TABLE oncemill.claims IN ACCESS EXCLUSIVE MODE`)
	must(t, err)
	var all sync.WaitGroup
	for n := range 40 {
		all.Go(func() {
			c := s.caller.at(s.guards[n%2].url)
			r, err := c.once(context.Background(), c.guards[0], http.MethodPost, "/claim", "", encode(object{"request_id": idOf(n), "action": "order"}))
			if err != nil || r.Status == "PROCEED" || r.code != http.StatusServiceUnavailable && r.Status != "PENDING" {
				t.Errorf("%s: %s, %v", idOf(n), r, err)
			}
		})
	}
	all.Wait()
	must(t, tx.Rollback())
	s.recovers()
	eventually(t, "no claim is left of those who were refused", func() bool {
		return s.count(`SELECT count(*) FROM oncemill.claims WHERE settled_at IS NULL`) == 0
	})
	s.audit()
}

// The primary becomes a standby, which takes no writes, and is promoted: the guards' own
// connections are the same before and after that.
func TestReadOnlyDatabase(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "oncemill-guard-")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755)) // the server may run as another user
	server := ownPostgresIn(t, filepath.Join(dir, "server"))
	s := siteOn(t, testcontainers.DatabaseOn(t, server))
	held := s.proceeds(0, "held", nil)
	must(t, server.Stop())
	must(t, os.WriteFile(filepath.Join(dir, "server", "data", "standby.signal"), nil, 0o644))
	must(t, server.Start(within(t)))

	s.wantUnavailable("the database takes no writes")
	for guard := range s.guards {
		r := s.once(guard, "/settle/held", held.Token, object{"result": object{}})
		wantProblem(t, r, 503, "unavailable")
		if all, err := s.audits.at(s.guards[guard].url).list(within(t), "/audit?"); err != nil || len(all) != 1 {
			t.Errorf("what can be read: %+v, %v", all, err)
		}
	}

	s.exec(`SELECT pg_promote()`)
	s.recovers()
	wantReply(t, s.ends(1, "settle", "held", held.Token, object{"result": object{}}), 200, "committed")
	if n := s.count(`SELECT count(*) FROM oncemill.claims WHERE key LIKE '%in-an-outage'`); n != 0 {
		t.Errorf("%d claims were made in the outage", n)
	}
	s.audit()
}

func (s *site) readyzIs(guard, code int) bool {
	r, err := s.caller.once(within(s.t), s.guards[guard].url, http.MethodGet, "/readyz", "", nil)
	return err == nil && r.code == code
}

// once posts to one guard, once.
func (s *site) once(guard int, path, token string, body object) reply {
	s.t.Helper()
	r, err := s.audits.once(within(s.t), s.guards[guard].url, http.MethodPost, path, token, encode(body))
	must(s.t, err)
	return r
}

// Postgres does not answer any more, and its connections stay open. Every claim is
// answered all the same, and with 503; and when it goes on, so do the guards.
func TestAFrozenPostgres(t *testing.T) {
	t.Parallel()
	server := ownPostgres(t)
	s := siteOn(t, testcontainers.DatabaseOn(t, server), "--timeout", "1s")
	s.recovers()
	must(t, server.Freeze())
	patient := s.newCaller(20 * time.Second) // as long as it takes to look whether a claim was made
	var all sync.WaitGroup
	for n := range 16 {
		all.Go(func() {
			body := encode(object{"request_id": idOf(n), "action": "order"})
			r, err := patient.once(context.Background(), s.guards[n%2].url, http.MethodPost, "/claim", "", body)
			if err != nil || r.code != http.StatusServiceUnavailable {
				t.Errorf("%s: %s, %v", idOf(n), r, err)
			}
		})
	}
	all.Wait()
	must(t, server.Thaw())
	eventually(t, "the guards serve", func() bool { return s.readyzIs(0, http.StatusOK) && s.readyzIs(1, http.StatusOK) })
	s.audit()
}
