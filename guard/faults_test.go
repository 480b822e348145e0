package guard_test

import (
	"context"
	"database/sql"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/guard"
	"github.com/oncemill/oncemill/internal/testenv"
)

// everything is a request to each endpoint that needs the database.
var everything = []struct{ method, target, body string }{
	{"POST", "/claim", `{"request_id":"b","action":"x"}`},
	{"POST", "/claim", `{"request_id":"c","action":"x","nonce":"` + nonce + `"}`},
	{"POST", "/claim", `{"agent_id":"b","action_type":"x","scope":"d"}`},
	{"POST", "/claim/test", `{"agent_id":"b","action_type":"x","scope":"d"}`},
	{"POST", "/settle/a", `{"result":{}}`},
	{"POST", "/release/a", ""},
	{"POST", "/fail/a", ""},
	{"POST", "/extend/a", ""},
	{"POST", "/resolve/a", `{"verdict":"never","note":"n"}`},
	{"POST", "/resolve/a", `{"verdict":"never","note":"n","attempt":1}`},
	{"POST", "/sweep", ""},
	{"GET", "/audit", ""},
	{"GET", "/events", ""},
	{"GET", "/events?format=ndjson", ""},
	{"GET", "/summary", ""},
	{"GET", "/readyz", ""},
}

// hurried makes a guard give up soon.
func hurried(h *guard.Handler) {
	h.Timeout, h.Inbox.DrainTimeout = time.Second, 200*time.Millisecond
}

// unavailable wants 503, whose words tell nothing about the database.
func (a *answer) unavailable(details ...string) {
	a.t.Helper()
	detail, _ := a.fields()["detail"].(string)
	said := false
	for _, one := range details {
		said = said || detail == one
	}
	if a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" || !said {
		a.t.Errorf("%s: got %d %s, want 503 with one of %q", a.what, a.status, a.body, details)
	}
}

const away = "the database is not available at the moment"

func TestWhilePostgresIsAwayNobodyProceeds(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	token := s.claim("a")
	gate := newGate(t, s.url)
	g := s.at(gate.url, hurried)
	g.get("/readyz").is(200, `{"status":"ok"}`)
	gate.close()
	for _, e := range everything {
		if e.target != "/readyz" { // it remembers for a moment
			g.do(e.method, e.target, e.body, token, asAuditor).unavailable(away, "the database did not answer in time")
		}
	}
	s.until("it is not ready", func() bool { return g.get("/readyz").status == 503 })
	g.get("/readyz").unavailable(away)
	g.get("/health").is(200, `{"status":"ok"}`)
	s.wantEvents("a", "claimed")
	if n := strings.Count(strings.Join(g.log.read(), "\n"), `"level":"ERROR","msg":"guard: a request could not be answered"`); n == 0 || n > 5 {
		t.Errorf("%d errors in the log are about requests that all failed alike, want one in 10 seconds", n)
	}

	gate.open(t)
	s.until("it is ready", func() bool { return g.get("/readyz").status == 200 })
	g.post("/settle/a", `{"result":{}}`, token).is(200, `{"status":"committed","request_id":"a"}`)
	g.claim("b")
}

// A guard that was never checked finds its key as soon as the database is there.
func TestAGuardThatFindsNoDatabaseFirst(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	token := s.claim("a")
	gate := newGate(t, s.url)
	gate.close()
	g := s.unchecked(gate.url, hurried)
	g.post("/settle/a", `{"result":{}}`, token).unavailable(away)
	gate.open(t)
	g.post("/settle/a", `{"result":{}}`, token).is(200, `{"status":"committed","request_id":"a"}`)
}

// A Postgres that takes no writes, whatever the reason, has nobody proceed.
func TestWhilePostgresTakesNoWritesNobodyProceeds(t *testing.T) {
	t.Parallel()
	for state, says := range map[string]string{"25006": "the database takes no writes at the moment", "53100": away} {
		s := newSite(t)
		token := s.claim("a")
		g := s.another() // Postgres answers: nothing here is to end by time
		s.exec(`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no space on /secret/disk' USING ERRCODE = '` + state + `'; END $$`)
		s.exec(`CREATE TRIGGER refuse BEFORE INSERT OR UPDATE OR DELETE ON oncemill.claims EXECUTE FUNCTION refuse()`)
		s.exec(`CREATE TRIGGER refuse BEFORE INSERT ON oncemill.events EXECUTE FUNCTION refuse()`)
		for _, e := range everything[:8] {
			g.do(e.method, e.target, e.body, token).unavailable(says)
		}
		g.get("/audit", asAuditor).lists("status", "PENDING")
		s.wantEvents("a", "claimed")
		s.exec(`DROP TRIGGER refuse ON oncemill.claims`)
		g.post("/settle/a", `{"result":{}}`, token).unavailable(says) // not without its event
		s.get("/audit?status=COMMITTED", asAuditor).lists("request_id")
		s.exec(`DROP TRIGGER refuse ON oncemill.events`)
		g.post("/settle/a", `{"result":{}}`, token).is(200, `{"status":"committed","request_id":"a"}`)
		g.claim("b")
	}
}

// Where sessions begin read-only a guard does not start, and is not ready.
func TestAGuardIsNotReadyWhereSessionsAreReadOnly(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "settings of a role, which the sessions that a pooler keeps do not have yet")
	s := newSite(t)
	g := s.another(hurried)
	g.claim("a")
	name := strings.TrimPrefix(must(url.Parse(s.url)).Path, "/")
	set := func(value string) {
		t.Helper()
		noError(t, execOnce(s.url, `SET default_transaction_read_only = off`, `ALTER DATABASE "`+name+`" SET default_transaction_read_only = `+value))
		s.until("older sessions are gone", func() bool {
			return s.count(`SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`) == 0
		})
	}
	set("on")
	s.until("it is not ready", func() bool { return g.get("/readyz").status == 503 })
	g.get("/readyz").unavailable("the database takes no writes at the moment")
	if err := s.unchecked(s.url).handler.Check(within(t)); err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("Check: %v", err)
	}
	set("off")
	s.until("it is ready", func() bool { return g.get("/readyz").status == 200 })
	g.claim("b")
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

// execOnce runs statements on a session of their own.
func execOnce(address string, statements ...string) error {
	db, err := sql.Open("postgres", address)
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	for _, statement := range statements {
		if _, err := db.Exec(statement); err != nil {
			return err
		}
	}
	return nil
}

func TestWithoutAConnectionNobodyProceedsOrWaitsForLong(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	token := s.claim("a")
	g := s.another(hurried)
	db := g.handler.Inbox.DB
	db.SetMaxOpenConns(2)
	var taken []*sql.Conn
	for range 2 {
		taken = append(taken, must(db.Conn(within(t))))
	}
	var wg sync.WaitGroup
	start := time.Now()
	for _, e := range everything {
		wg.Go(func() {
			g.do(e.method, e.target, e.body, token, asAuditor).unavailable("the database did not answer in time", away, "the list took too long: give from_ts and to_ts, or fewer filters")
		})
	}
	wg.Wait()
	t.Logf("all together took %v", time.Since(start))
	for _, conn := range taken {
		conn.Close()
	}
	g.post("/settle/a", `{"result":{}}`, token).is(200, `{"status":"committed","request_id":"a"}`)
	for _, e := range everything[:4] {
		g.do(e.method, e.target, e.body).settlement() // none of them was left claimed
	}
	s.until("it is ready", func() bool { return g.get("/readyz").status == 200 })
}

// The answer to a claim's statement gets lost between Postgres and the guard: it is found
// again, or given back.
func TestAConnectionThatBreaksInAClaimBlocksNobody(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	blocker := must(s.db.BeginTx(within(t), nil))
	_, err := blocker.Exec(`LOCK TABLE oncemill.events IN EXCLUSIVE MODE`)
	noError(t, err)
	gate := newGate(t, s.url)
	g := s.at(gate.url)
	answered := make(chan *answer)
	go func() { answered <- g.post("/claim", `{"request_id":"a","action":"x"}`) }()
	s.until("the claim waits", func() bool {
		return s.count(`SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'oncemill.events'::regclass`) > 0
	})
	gate.close()
	gate.open(t)
	noError(t, blocker.Rollback())
	got := <-answered
	switch got.status {
	case 200:
		g.post("/settle/a", `{"result":{}}`, got.settlement()).is(200, `{"status":"committed","request_id":"a"}`)
	case 503:
		s.until("the id is free", func() bool {
			return g.post("/claim", `{"request_id":"a","action":"x"}`).fields()["status"] == "PROCEED"
		})
	default:
		t.Errorf("got %d %s", got.status, got.body)
	}
}

// What must stay secret is in no log and in no answer, whatever goes wrong.
func TestSecretsAreNeverTold(t *testing.T) {
	t.Parallel()
	tenants, keys := withTenants(t)
	s := newSite(t, tenants)
	gate := newGate(t, s.url)
	g := s.at(gate.url, tenants, hurried)
	token := g.claim("a", keys["acme"])
	password := "hunter2-in-the-url"
	broken := s.unchecked(strings.Replace(gate.url, "@", ":"+password+"@", 1), tenants, hurried)
	var told strings.Builder
	tell := func(a *answer) { told.Write(a.body) }
	for _, closed := range []bool{false, true} {
		if closed {
			gate.close()
		}
		for _, e := range everything {
			for _, at := range []*site{g, broken} {
				tell(at.do(e.method, e.target, e.body, keys["acme operator"], token, asAuditor))
				tell(at.do(e.method, e.target, e.body, keys["acme"], strings.ToUpper(token), "X-SafeAgent-Audit-Token: "+auditToken+"x"))
				tell(at.do(e.method, e.target, `{"request_id":1,"nonce":"`+nonce+`x","result":`, keys["acme"], token))
				tell(at.do(e.method, e.target+"/x", e.body, keys["acme"]+"x", keys["globex"], asAuditor, asAuditor))
			}
		}
	}
	logged := strings.Join(append(g.log.read(), broken.log.read()...), "\n")
	if !strings.Contains(logged, "could not be answered") {
		t.Errorf("the failures are not logged: %s", logged)
	}
	_, digits, _ := strings.Cut(token, ": ")
	secrets := []string{auditToken, password, nonce, digits}
	for _, header := range keys {
		_, key, _ := strings.Cut(header, ": ")
		secrets = append(secrets, key, key[13:])
	}
	for _, secret := range secrets {
		if strings.Contains(logged, secret) {
			t.Errorf("%s is logged: %s", secret, logged)
		}
		if strings.Contains(strings.ReplaceAll(told.String(), `"settlement_token":"`+digits, ""), secret) {
			t.Errorf("%s is told: %s", secret, told.String())
		}
	}
	for _, host := range []string{gate.addr, "127.0.0.1", "pq:", "oncemill_test"} {
		if strings.Contains(told.String(), host) {
			t.Errorf("%s is told: %s", host, told.String())
		}
	}
}

func TestCheckNamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for says, change := range map[string]func(*guard.Handler){
		"Handler.Inbox is nil":                 func(h *guard.Handler) { h.Inbox = nil },
		"Handler.AuditToken has 31 characters": func(h *guard.Handler) { h.AuditToken = strings.Repeat("x", 31) },
		"Handler.Timeout":                      func(h *guard.Handler) { h.Timeout = -1 },
		"Handler.TestCalls":                    func(h *guard.Handler) { h.TestCalls = -1 },
		"Handler.Lease":                        func(h *guard.Handler) { h.Lease = time.Millisecond },
		"Tenants.File is empty":                func(h *guard.Handler) { h.Tenants = new(guard.Tenants) },
		"no such file":                         func(h *guard.Handler) { h.Tenants = &guard.Tenants{File: t.TempDir() + "/none"} },
		"Inbox.DB is nil":                      func(h *guard.Handler) { h.Inbox = new(oncemill.Inbox) },
		"database schema":                      func(h *guard.Handler) { h.Inbox.Schema = "elsewhere" },
	} {
		h := &guard.Handler{Inbox: &oncemill.Inbox{DB: s.db}}
		change(h)
		ctx, cancel := context.WithTimeout(within(t), 20*time.Second)
		if err := h.Check(ctx); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want an error that says %q", err, says)
		}
		cancel()
	}
}

// All guards of a database sign with one key, whichever made it.
func TestGuardsThatStartTogetherHaveOneKey(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.exec(`DELETE FROM oncemill.secrets`)
	guards := []*site{s.unchecked(s.url), s.unchecked(s.url), s.unchecked(s.url)}
	tokens := make(chan string)
	for i, g := range guards {
		go func() { tokens <- g.claim(string(rune('a' + i))) }()
	}
	all := []string{<-tokens, <-tokens, <-tokens}
	for _, g := range guards {
		for i := range guards {
			settled := false
			for _, token := range all {
				settled = settled || g.post("/extend/"+string(rune('a'+i)), "", token).status == 200
			}
			if !settled {
				t.Error("a guard does not know the token of another")
			}
		}
	}
}
