package guard_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

const inDoubt = `{"status":"PENDING","request_id":"a","agent_id":null,"in_doubt":true,"reason":"its lease was over"}`

// What nobody has settled in time is in doubt, for all to see, and never free.
func TestAnExpiredClaimIsInDoubtAndNeverFree(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	token := s.claim("a")
	s.expire("a")
	s.get("/audit?status=PENDING", asAuditor).lists("in_doubt", true) // before anybody has noted it
	for range 3 {
		s.post("/claim", `{"request_id":"a","action":"charge"}`).is(200, inDoubt)
	}
	s.wantEvents("a", "claimed", "in doubt", "blocked", "blocked", "blocked")
	s.get("/audit?status=IN_DOUBT", asAuditor).lists("reason", "its lease was over")
	s.get("/events?kind=in+doubt", asAuditor).lists("request_id", "a")
	s.post("/extend/a", "", token).refused(409, "in_doubt", "the claim is in doubt: its lease was over")
	s.post("/settle/a", `{"result":{"late":true}}`, token).is(200, `{"status":"committed","request_id":"a"}`)
	s.post("/claim", `{"request_id":"a","action":"charge"}`, token).is(200, `{"status":"SKIP","request_id":"a","agent_id":null,"existing":{"late":true}}`)
	s.get("/audit?status=IN_DOUBT", asAuditor).lists("request_id")
}

// Also a late release and a late failure are taken.
func TestALateEndIsTaken(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for path, status := range map[string]string{"release": "released", "fail": "failed", "settle": "committed", "extend": "extended"} {
		token := s.claim(path)
		s.expire(path)
		want := map[string]string{"status": status, "request_id": path}
		if path == "extend" { // nobody has noted it yet
			want["lease_until"] = "*"
		}
		s.post("/"+path+"/"+path, `{"result":{}}`, token).is(200, mustJSON(t, want))
	}
}

// Run notes what is in doubt, without anybody asking.
func TestRunNotesWhatIsInDoubt(t *testing.T) {
	t.Parallel()
	tenants, keys := withTenants(t)
	s := newSite(t, tenants)
	s.claim("a", keys["acme"])
	s.claim("b", keys["globex"])
	s.expire("a")
	s.expire("b")
	s.running()
	s.until("both are noted", func() bool { return s.count(`SELECT count(*) FROM oncemill.events WHERE kind = 'in doubt'`) == 2 })
	s.get("/events?kind=in+doubt", keys["acme"]).lists("request_id", "a")
	s.get("/audit?status=IN_DOUBT", keys["globex"]).lists("reason", "its lease was over")
}

// running runs the guard's Run until the test ends.
func (s *site) running() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- s.handler.Run(ctx) }()
	s.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			s.t.Errorf("Run: %v", err)
		}
	})
}

// until waits for something that Postgres knows.
func (s *site) until(what string, done func() bool) {
	s.t.Helper()
	for end := time.Now().Add(30 * time.Second); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("waited in vain until %s", what)
		}
	}
}

// attempt returns what /audit says of an id's attempt.
func (s *site) attempt(id string, as string) (attempt int64) {
	s.t.Helper()
	noError(s.t, s.db.QueryRow(`SELECT token FROM oncemill.claims WHERE key = $1`, id).Scan(&attempt))
	s.get("/audit?limit=1", as).lists("attempt", attempt)
	return attempt
}

func TestAnOperatorResolvesWhatIsInDoubt(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for verdict, want := range map[string]string{
		"happened":     `{"status":"SKIP","request_id":"happened","agent_id":null,"existing":{"seen":1}}`,
		"not happened": `{"status":"PROCEED","request_id":"not happened","agent_id":null,"settlement_token":"*","lease_until":"*","provider_key":"*"}`,
		"never":        `{"status":"SKIP","request_id":"never","agent_id":null,"failed":true,"reason":"looked at the ledger"}`,
	} {
		path := "/resolve/" + strings.ReplaceAll(verdict, " ", "%20")
		body := map[string]any{"verdict": verdict, "note": "looked at the ledger"}
		if verdict == "happened" {
			body["result"] = map[string]any{"seen": 1}
		}
		token := s.claim(verdict)
		s.post(path, mustJSON(t, body), asAuditor).refused(409, "in_flight", "the claim is in flight: its lease is not over")
		s.expire(verdict)
		s.post(path, mustJSON(t, body)).refused(403, "operator", "operator access required: an operator's API key, or the audit token")
		s.post(path, mustJSON(t, body), token).refused(403, "operator", "operator access required: an operator's API key, or the audit token")
		attempt := s.attempt(verdict, asAuditor)
		body["attempt"] = attempt + 1000
		s.post(path, mustJSON(t, body), asAuditor).refused(409, "fenced", "the claim is no longer yours: it was resolved, or released and claimed again")
		body["attempt"] = attempt
		resolved := fmt.Sprintf(`{"status":"resolved","request_id":%q,"verdict":%q}`, verdict, verdict)
		s.post(path, mustJSON(t, body), asAuditor).is(200, resolved)
		s.post(path, mustJSON(t, body), asAuditor).is(200, resolved) // its answer was lost
		s.get("/events?actor=operator&limit=1&request_id="+strings.ReplaceAll(verdict, " ", "+"), asAuditor).lists("note", "resolved: "+verdict+"; looked at the ledger")
		s.post("/claim", mustJSON(t, map[string]any{"request_id": verdict, "action": "charge", "replay": true}), asAuditor).is(200, want)
		for _, end := range []string{"/settle/", "/release/", "/fail/"} { // whose claim it was
			got := s.post(end+strings.ReplaceAll(verdict, " ", "%20"), `{"result":{}}`, token)
			if got.status != 409 || got.fields()["code"] != "fenced" {
				t.Errorf("%s: got %d %s, want fenced", got.what, got.status, got.body)
			}
		}
	}
	s.post("/resolve/happened", `{"verdict":"never","note":"n"}`, asAuditor).is(409, `{"detail":"the claim has ended as settled","type":"urn:oncemill:problem:settled","title":"Conflict","status":409,"code":"settled","outcome":"settled"}`)
	s.post("/resolve/nobody's", `{"verdict":"never","note":"n"}`, asAuditor).refused(404, "not_found", "request_id not found")
}

func TestTenantsResolveTheirOwnWithAnOperatorsKey(t *testing.T) {
	t.Parallel()
	tenants, keys := withTenants(t)
	s := newSite(t, tenants)
	for _, tenant := range []string{"acme", "globex"} {
		s.claim("a", keys[tenant])
		s.expire("a")
	}
	const body = `{"verdict":"happened","note":"n"%s}`
	say := func(more string) string { return fmt.Sprintf(body, more) }
	s.post("/resolve/a", say(""), keys["acme"]).refused(403, "operator", "operator access required: an operator's API key, or the audit token")
	s.post("/resolve/a", say(`,"tenant":"globex"`), keys["acme operator"]).refused(403, "operator", `operator access required for tenant "globex"`)
	s.post("/resolve/a", say(`,"tenant":"initech"`), keys["acme operator"]).refused(403, "operator", `operator access required for tenant "initech"`)
	s.post("/resolve/a", say(""), keys["acme operator"]).is(200, `{"status":"resolved","request_id":"a","verdict":"happened"}`)
	s.get("/audit", asAuditor).lists("status", "PENDING", "COMMITTED")

	s.post("/resolve/a", say(""), asAuditor).invalid("body", "tenant", "Field required")
	s.post("/resolve/a", say(`,"tenant":"initech"`), asAuditor).invalid("body", "tenant", `no tenant "initech"`)
	s.post("/resolve/a", say(`,"tenant":"globex"`), asAuditor).is(200, `{"status":"resolved","request_id":"a","verdict":"happened"}`)
	s.post("/claim", `{"request_id":"a","action":"charge","replay":true}`, keys["globex"]).is(200, `{"status":"SKIP","request_id":"a","agent_id":null,"existing":null}`)
}

func TestAResolutionNamesWhatIsWrongWithIt(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.claim("a")
	s.expire("a")
	for body, field := range map[string]string{
		`{"note":"n"}`:                                                      "verdict",
		`{"verdict":"unknown","note":"n"}`:                                  "verdict",
		`{"verdict":"","note":"n"}`:                                         "verdict",
		`{"verdict":null,"note":"n"}`:                                       "verdict",
		`{"verdict":"happened"}`:                                            "note",
		`{"verdict":"happened","note":""}`:                                  "note",
		`{"verdict":"happened","note":1}`:                                   "note",
		`{"verdict":"happened","note":"` + strings.Repeat("n", 2049) + `"}`: "note",
		`{"verdict":"never","note":"n","result":{}}`:                        "result",
		`{"verdict":"happened","note":"n","result":1}`:                      "result",
		`{"verdict":"happened","note":"n","attempt":0}`:                     "attempt",
		`{"verdict":"happened","note":"n","attempt":1.5}`:                   "attempt",
		`{"verdict":"happened","note":"n","attempt":"1"}`:                   "attempt",
		`{"verdict":"happened","note":"n","attempt":9223372036854775808}`:   "attempt",
		`{"verdict":"happened","note":"n","tenant":"acme"}`:                 "tenant",
		`{"verdict":"happened","note":"n","tenant":1}`:                      "tenant",
	} {
		s.post("/resolve/a", body, asAuditor).invalid("body", field, "")
	}
	s.wantEvents("a", "claimed")
}
