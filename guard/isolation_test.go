package guard_test

import (
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/oncemill/oncemill/guard"
)

func TestWithTenantsEveryRequestNeedsItsAccess(t *testing.T) {
	t.Parallel()
	tenants, keys := withTenants(t)
	for _, old := range []bool{false, true} {
		s := newSite(t, tenants, func(h *guard.Handler) { h.Legacy = old })
		token := s.claim("a", keys["acme"])
		for _, wrong := range []string{"", "X-SafeAgent-Api-Key: omk_00000000_" + strings.Repeat("A", 43), asAuditor} {
			for _, path := range []string{"/claim", "/claim/test", "/settle/a", "/release/a", "/fail/a", "/extend/a"} {
				for _, body := range []string{"", `{"request_id":"b","action":"c","agent_id":"d","action_type":"e","scope":"f","result":{}}`} {
					s.post(path, body, wrong, token).refused(403, "api_key", "tenant API key required")
				}
			}
		}
		for _, wrong := range []string{"", "X-SafeAgent-Api-Key: " + strings.Repeat("x", 60), "X-SafeAgent-Audit-Token: " + auditToken + "x", "X-SafeAgent-Audit-Token: " + auditToken[1:]} {
			for _, path := range []string{"/audit", "/events", "/events?format=ndjson", "/summary", "/audit?tenant=acme", "/audit?tenant=initech"} {
				s.get(path, wrong).refused(403, "audit_token", "audit access required")
			}
			s.post("/sweep", "", wrong).refused(403, "audit_token", "audit access required")
			s.post("/resolve/a", `{"verdict":"never","note":"n"}`, wrong).refused(403, "operator", "operator access required: an operator's API key, or the audit token")
		}
		s.wantEvents("a", "claimed")
	}
}

// Nothing that a tenant can ask tells it whether another one has an id: for each request
// the answer is, byte for byte, that about an id that nobody has.
func TestAnotherTenantsIDIsAsIfNobodyHadIt(t *testing.T) {
	t.Parallel()
	tenants, keys := withTenants(t)
	for _, old := range []bool{false, true} {
		s := newSite(t, tenants, func(h *guard.Handler) { h.Legacy = old })
		theirs := s.claim("theirs-1", keys["globex"])
		s.claim("theirs-2", keys["globex"])
		s.expire("theirs-2")
		settled := s.claim("theirs-3", keys["globex"])
		s.post("/settle/theirs-3", `{"result":{"secret":1}}`, settled, keys["globex"]).is(200, `{"status":"committed","request_id":"theirs-3"}`)
		failed := s.claim("theirs-4", keys["globex"])
		s.post("/fail/theirs-4", `{"reason":"secret"}`, failed, keys["globex"]).is(200, `{"status":"failed","request_id":"theirs-4"}`)

		for _, id := range []string{"theirs-1", "theirs-2", "theirs-3", "theirs-4"} {
			nobodys := strings.Replace(id, "theirs", "nobody", 1)
			same := func(method, target, body string, headers ...string) {
				t.Helper()
				headers = append(headers, keys["acme operator"])
				got := s.do(method, strings.ReplaceAll(target, "ID", id), strings.ReplaceAll(body, "ID", id), headers...)
				want := s.do(method, strings.ReplaceAll(target, "ID", nobodys), strings.ReplaceAll(body, "ID", nobodys), headers...)
				if got.status != want.status || string(got.body) != strings.ReplaceAll(string(want.body), nobodys, id) {
					t.Errorf("%s: got %d %s, nobody's id gets %d %s", got.what, got.status, got.body, want.status, want.body)
				}
				for name := range want.header {
					if name != "Date" && got.header.Get(name) != want.header.Get(name) {
						t.Errorf("%s: %s is %q, for nobody's id %q", got.what, name, got.header.Get(name), want.header.Get(name))
					}
				}
			}
			for _, token := range []string{"", theirs, settled, failed} {
				for _, path := range []string{"/settle/ID", "/release/ID", "/fail/ID", "/extend/ID"} {
					same("POST", path, `{"result":{},"reason":"r"}`, token)
				}
			}
			same("POST", "/resolve/ID", `{"verdict":"never","note":"n"}`)
			same("POST", "/resolve/ID", `{"verdict":"not happened","note":"n","attempt":1}`)
			same("POST", "/resolve/ID", `{"verdict":"never","note":"n","tenant":"globex"}`)
			same("GET", "/events?request_id=ID", "")
			same("GET", "/events?request_id=ID&format=ndjson", "")
			same("GET", "/audit?agent_id=ID", "")
		}
		s.get("/audit", keys["acme"]).lists("request_id")
		s.get("/events", keys["acme"]).lists("request_id")
		s.get("/audit?tenant=globex", keys["acme"]).refused(403, "audit_token", "audit access required")
		s.get("/audit?tenant=initech", keys["acme"]).refused(403, "audit_token", "audit access required")
		s.get("/summary", keys["acme"]).is(200, `{"items":[],"blocked":0,"effects":0}`)
		s.post("/sweep", "", keys["acme"]).is(200, `{"swept":0,"stale_pending":0,"requires_reconciliation":false,"action":"none"}`)
		s.post("/sweep", "", keys["globex"]).is(200, `{"swept":0,"stale_pending":1,"requires_reconciliation":true,"action":"none"}`)
		s.post("/claim", `{"request_id":"theirs-3","action":"a","replay":true,"fingerprint":"f"}`, keys["acme"], theirs).
			is(200, `{"status":"PROCEED","request_id":"theirs-3","agent_id":null,"settlement_token":"*","lease_until":"*","provider_key":"*"}`)
		s.get("/events?kind=claimed", keys["acme"]).lists("tenant", "acme")
		s.get("/audit?tenant=globex", asAuditor).lists("request_id", "theirs-4", "theirs-3", "theirs-2", "theirs-1")
		s.get("/audit?tenant=initech", asAuditor).invalid("query", "tenant", `no tenant "initech"`)
		s.get("/audit?limit=2", asAuditor).lists("tenant", "acme", "globex")
	}
}

func TestTheEventsNameTheKeyThatHasDoneIt(t *testing.T) {
	t.Parallel()
	tenants, keys := withTenants(t)
	s := newSite(t, tenants)
	token := s.claim("a", keys["acme"])
	s.post("/settle/a", `{"result":{}}`, keys["acme operator"], token).is(200, `{"status":"committed","request_id":"a"}`)
	id := func(key string) string { return "key " + strings.Split(key, "_")[1] }
	s.get("/events", keys["acme"]).lists("actor", id(keys["acme operator"]), id(keys["acme"]))
	s.get("/events?actor="+url.QueryEscape(id(keys["acme"])), keys["acme"]).lists("kind", "claimed")
}

func TestATenantsRateIsLimited(t *testing.T) {
	t.Parallel()
	tenants, keys := withTenants(t)
	s := newSite(t, tenants, func(h *guard.Handler) { h.Tenants.Rate, h.Tenants.Burst = 0.001, 2 })
	s.claim("a", keys["acme"])
	s.claim("b", keys["acme operator"]) // the same tenant
	for _, request := range []struct{ method, path string }{{"POST", "/claim"}, {"POST", "/settle/a"}, {"GET", "/audit"}, {"GET", "/events"}, {"POST", "/sweep"}} {
		got := s.do(request.method, request.path, "", keys["acme"])
		if got.status != 429 || got.fields()["code"] != "rate_limited" {
			t.Errorf("%s: got %d %s", got.what, got.status, got.body)
		}
		if after, err := time.ParseDuration(got.header.Get("Retry-After") + "s"); err != nil || after < 900*time.Second || after > 1000*time.Second {
			t.Errorf("Retry-After is %q", got.header.Get("Retry-After"))
		}
	}
	s.claim("a", keys["globex"])
	s.get("/health").is(200, `{"status":"ok"}`)
}

// A key that is taken out of the file is not accepted any more, without a restart, and a
// tenant's claims can still be read.
func TestAChangeOfTenantsIsTaken(t *testing.T) {
	t.Parallel()
	tenants, keys := withTenants(t)
	s := newSite(t, tenants)
	s.claim("a", keys["acme"])
	s.running()
	noError(t, guard.EditTenants(s.handler.Tenants.File, func(entries []guard.TenantEntry) ([]guard.TenantEntry, error) {
		entries[0].Keys = entries[0].Keys[1:]
		return entries, nil
	}))
	s.until("the key is refused", func() bool {
		return s.post("/claim", `{"request_id":"b","action":"x"}`, keys["acme"]).status == 403
	})
	s.get("/audit?status=PENDING&limit=1", keys["acme operator"])
	if _, err := os.Stat(s.handler.Tenants.File); err != nil {
		t.Error(err)
	}
}

// Where nobody needs a key, a page that somebody happens to look at must not claim, as a
// browser would send that for it.
func TestAPageOfAnotherOriginClaimsNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t, legacy)
	const claim = `{"request_id":"a","action":"x"}`
	for _, header := range []string{"Origin: https://elsewhere.example", "Origin: null", "Sec-Fetch-Site: cross-site"} {
		for _, path := range []string{"/claim", "/claim/test", "/settle/a", "/release/a", "/fail/a", "/extend/a", "/resolve/a", "/sweep"} {
			s.post(path, claim, header, "Content-Type: text/plain").refused(403, "cross_origin", "a browser sends this for a page of another origin")
		}
		s.get("/health", header).is(200, `{"status":"ok"}`)
	}
	s.wantNothing("pages of other origins")
	s.post("/claim", claim, "Origin: "+s.server.URL, "Sec-Fetch-Site: same-origin").settlement()
}
