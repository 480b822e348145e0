package guard_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

const proceeds = `{"status":"PROCEED","request_id":"order-7","agent_id":null,"settlement_token":"*","lease_until":"*","provider_key":"*"}`

// The clients with settlement tokens.
func TestAClaimProceedsOnceAndIsSkippedWhenItIsSettled(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	const claim = `{"request_id":"order-7","action":"charge","member":"nobody asks for"}`
	first := s.post("/claim", claim).is(200, proceeds)
	s.post("/claim", claim).is(200, `{"status":"PENDING","request_id":"order-7","agent_id":null}`)
	s.another().post("/claim", claim).is(200, `{"status":"PENDING","request_id":"order-7","agent_id":null}`)

	const settle, result = "/settle/order-7", `{"result":{"charge":"ch_1","n":12345678901234567890.10}}`
	s.post(settle, result).refused(403, "settlement_token", "settlement capability required")
	s.post(settle, result, first.settlement()).is(200, `{"status":"committed","request_id":"order-7"}`)
	s.another().post(settle, result, first.settlement()).is(200, `{"status":"already_committed","request_id":"order-7"}`)
	s.post(settle, `{"result":{"other":1}}`, first.settlement()).is(200, `{"status":"already_committed","request_id":"order-7"}`)

	const skip = `{"status":"SKIP","request_id":"order-7","agent_id":null}`
	s.post("/claim", claim).is(200, skip)
	s.post("/claim", claim, "X-SafeAgent-Settlement-Token: "+strings.Repeat("0", 64)).is(200, skip)
	s.post("/claim", `{"request_id":"order-7","action":"charge","replay":true}`).is(200, skip)
	s.post("/claim", claim, first.settlement()).is(200, `{"status":"SKIP","request_id":"order-7","agent_id":null,"existing":{"charge":"ch_1","n":12345678901234567890.10}}`)
	s.post("/claim", `{"request_id":"order-7","action":"charge","replay":true}`, asAuditor).is(200, `{"status":"SKIP","request_id":"order-7","agent_id":null,"existing":{"charge":"ch_1","n":12345678901234567890.10}}`)
	s.wantEvents("order-7", "claimed", "blocked", "blocked", "settled", "blocked", "blocked", "blocked", "blocked", "blocked")
}

// The clients from before settlement tokens.
func TestLegacyClientsSettleWithoutATokenAndReadResults(t *testing.T) {
	t.Parallel()
	s := newSite(t, legacy)
	const claim = `{"request_id":"order-7","action":"charge"}`
	s.post("/settle/order-7", `{"result":{}}`).refused(404, "not_found", "request_id not found")
	s.post("/claim", claim).is(200, proceeds)
	s.post("/claim", claim).is(200, `{"status":"PENDING","request_id":"order-7","agent_id":null}`)
	s.post("/settle/order-7", `{"result":"sent"}`).is(200, `{"status":"committed","request_id":"order-7"}`)
	s.post("/settle/order-7", `{"result":"sent"}`).is(200, `{"status":"already_committed","request_id":"order-7"}`)
	s.post("/settle/order-7", `{"result":{}}`, "X-SafeAgent-Settlement-Token: "+strings.Repeat("0", 64)).refused(403, "settlement_token", "settlement capability required")
	s.post("/claim", claim).is(200, `{"status":"SKIP","request_id":"order-7","agent_id":null,"existing":"sent"}`)
	audit := s.get("/audit").lists("request_id", "order-7")
	if rows := audit.fields()["rows"]; mustJSON(t, rows) != mustJSON(t, audit.fields()["items"]) {
		t.Errorf("rows are %v", rows)
	}
}

// The clients that name an agent, an action and a scope test for SKIP alone: they take
// everything else for leave to go on.
func TestADuplicateByScopeIsNeverToldAnythingButSkip(t *testing.T) {
	t.Parallel()
	for _, old := range []bool{false, true} {
		s := newSite(t)
		s.handler.Legacy = old
		skipped := func(body string, more string) {
			t.Helper()
			if old { // they read it without looking whether it is there
				more += `,"existing":null`
			}
			s.post("/claim", body).is(200, `{"status":"SKIP","request_id":"bot-1:buy:TQQQ","agent_id":"bot-1"`+more+`}`)
		}
		const claim = `{"agent_id":"bot-1","action_type":"buy","scope":"TQQQ"}`
		const id = "bot-1:buy:TQQQ"
		token := s.post("/claim", claim).is(200, `{"status":"PROCEED","request_id":"bot-1:buy:TQQQ","agent_id":"bot-1","settlement_token":"*","lease_until":"*","provider_key":"*"}`).settlement()
		skipped(claim, "")
		s.post("/claim", `{"request_id":"`+id+`","action":"buy"}`).is(200, `{"status":"PENDING","request_id":"bot-1:buy:TQQQ","agent_id":"bot-1"}`)
		s.expire(id)
		skipped(claim, `,"in_doubt":true,"reason":"its lease was over"`)
		s.post("/fail/"+id, `{"reason":"halted"}`, token).is(200, `{"status":"failed","request_id":"bot-1:buy:TQQQ"}`)
		skipped(claim, `,"failed":true,"reason":"halted"`)
		skipped(`{"request_id":"`+id+`","action":"buy"}`, `,"failed":true,"reason":"halted"`)
	}
}

// Two triples can have one id: then they are not one claim.
func TestTriplesThatAreJoinedToOneIDAreToldApart(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.post("/claim", `{"agent_id":"a:b","action_type":"c","scope":"d"}`).settlement()
	s.post("/claim", `{"agent_id":"a","action_type":"b:c","scope":"d"}`).
		refused(409, "key_reused", "request_id was claimed with another fingerprint or payload: give each effect an id of its own")
	s.wantEvents("a:b:c:d", "claimed", "conflict")
}

// testID is what Python makes of the three of the test.
const testID = "test:3bd441db9402ba118c1975b36aede1cba32e68c9ee3b13b465cce633dcf84107"

func TestATestClaimHasAnIDOfItsOwn(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	const claim = `{"scope":"Zürich <&>","action_type":"buy","agent_id":"bot"}`
	s.handler.TestCalls = 3
	first := s.post("/claim/test", claim)
	first.is(200, fmt.Sprintf(`{"status":"PROCEED","request_id":%q,"agent_id":"bot","settlement_token":"*","lease_until":"*","provider_key":"*","test":true,"calls_remaining":2}`, testID))
	s.post("/claim/test", claim).is(200, fmt.Sprintf(`{"status":"PENDING","request_id":%q,"agent_id":"bot","test":true,"calls_remaining":1}`, testID))
	s.post("/settle/"+testID, `{"result":{}}`, first.settlement()).is(200, fmt.Sprintf(`{"status":"committed","request_id":%q}`, testID))
	s.post("/claim/test", claim).is(200, fmt.Sprintf(`{"status":"SKIP","request_id":%q,"agent_id":"bot","test":true,"calls_remaining":0}`, testID))
	over := s.post("/claim/test", claim)
	if over.status != http.StatusTooManyRequests || over.fields()["code"] != "rate_limited" || over.header.Get("Retry-After") != "3600" {
		t.Errorf("got %d %v %s", over.status, over.header, over.body)
	}
	s.post("/claim", claim).is(200, `{"status":"PROCEED","request_id":"bot:buy:Zürich <&>","agent_id":"bot","settlement_token":"*","lease_until":"*","provider_key":"*"}`)
	s.post("/claim", `{"request_id":"test:1","action":"a"}`).refused(422, "invalid", "test: prefix is reserved")
}

func TestSweepFreesNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.post("/sweep", "").is(200, `{"swept":0,"stale_pending":0,"requires_reconciliation":false,"action":"none"}`)
	s.claim("a")
	s.claim("b")
	s.post("/sweep", "").is(200, `{"swept":0,"stale_pending":0,"requires_reconciliation":false,"action":"none"}`)
	s.expire("a")
	s.post("/sweep", `{"anything":1}`).is(200, `{"swept":0,"stale_pending":1,"requires_reconciliation":true,"action":"none"}`)
	s.post("/claim", `{"request_id":"a","action":"charge"}`).is(200, `{"status":"PENDING","request_id":"a","agent_id":null,"in_doubt":true,"reason":"its lease was over"}`)
}

func TestHealthAndReadiness(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.get("/health").is(200, `{"status":"ok"}`)
	s.get("/readyz").is(200, `{"status":"ok"}`)
}

func TestWhatIsNotThere(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, path := range []string{"/", "/claims", "/claim/", "/claim/test/", "/settle", "/settle/", "/settle/?x", "/audit/1", "/CLAIM", "/health/", "/%63laim"} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			s.do(method, path, "").refused(404, "not_found", "Not Found")
		}
	}
	for path, allowed := range map[string]string{
		"/claim": "POST", "/claim/test": "POST", "/settle/x": "POST", "/release/x": "POST", "/fail/x": "POST", "/extend/x": "POST", "/resolve/x/y": "POST",
		"/sweep": "POST", "/audit": "GET", "/events": "GET", "/summary": "GET", "/health": "GET", "/readyz": "GET", "/openapi.json": "GET",
	} {
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch, http.MethodOptions, "QUERY"} {
			if method == allowed {
				continue
			}
			if got := s.do(method, path, "").refused(405, "method_not_allowed", "Method Not Allowed"); got.header.Get("Allow") != allowed {
				t.Errorf("%s %s: Allow is %q", method, path, got.header.Get("Allow"))
			}
		}
	}
	s.wantNothing("wrong paths and methods")
}

// The CrewAI backend looks for what it has claimed by its key, which is the scope.
func TestALegacyClientFindsItsScopeByAction(t *testing.T) {
	t.Parallel()
	s := newSite(t, legacy)
	s.post("/claim", `{"agent_id":"crew","action_type":"tool_execution","scope":"key-1"}`).settlement()
	s.post("/claim", `{"agent_id":"crew","action_type":"key-1","scope":"other"}`).settlement()
	s.post("/claim", `{"agent_id":"crew","action_type":"key-1","scope":"key-1"}`).settlement()
	s.post("/claim", `{"agent_id":"crew","action_type":"tool_execution","scope":"key-2"}`).settlement()
	s.post("/settle/crew:tool_execution:key-1", `{"result":["a",1]}`).is(200, `{"status":"committed","request_id":"crew:tool_execution:key-1"}`)
	s.get("/audit?action=key-1&status=COMMITTED&limit=1").is(200, `{"items":[`+settledRow+`],"rows":[`+settledRow+`],"total":1,"limit":1,"offset":0,"next_cursor":"*"}`)
	s.get("/audit?action=key-1").lists("request_id", "crew:key-1:key-1", "crew:key-1:other", "crew:tool_execution:key-1")
	s.get("/audit?action=key-3").is(200, `{"items":[],"rows":[],"total":0,"limit":100,"offset":0,"next_cursor":null}`)
	s.get("/audit?request_id=crew:key-1:other").lists("request_id", "crew:key-1:other")
	strict := s.another()
	strict.get("/audit?action=key-1").refused(403, "audit_token", "audit access required")
	strict.get("/audit?action=key-1", asAuditor).lists("request_id", "crew:key-1:key-1", "crew:key-1:other")
}

const settledRow = `{"request_id":"crew:tool_execution:key-1","action":"tool_execution","status":"COMMITTED","result":["a",1],"claimed_at":"*","committed_at":"*",
	"agent_id":"crew","in_doubt":false,"reason":null,"attempt":"*","lease_until":"*","amount":null,"currency":null,"tenant":null,"provider_key":"*"}`
