package guard_test

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/oncemill/oncemill/guard"
)

const (
	nonce = "Zk3vY0m8Jq4W1cXb7TnR5g"
	other = "another-nonce-of-22-ch"
)

func TestALostPROCEEDIsRepeatedWithItsNonce(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	const claim = `{"request_id":"a","action":"charge","nonce":"` + nonce + `","fingerprint":"f"}`
	first := s.post("/claim", claim)
	token := first.settlement()
	if again := s.another().post("/claim", claim); string(again.body) != string(first.body) {
		t.Errorf("got %s, want %s again", again.body, first.body)
	}
	s.wantEvents("a", "claimed", "repeated")

	const pending = `{"status":"PENDING","request_id":"a","agent_id":null}`
	s.post("/claim", strings.Replace(claim, nonce, other, 1)).is(200, pending)
	s.post("/claim", `{"request_id":"a","action":"charge","fingerprint":"f"}`).is(200, pending)
	s.post("/claim", strings.Replace(claim, `"f"`, `"g"`, 1)).refused(409, "key_reused", "request_id was claimed with another fingerprint or payload: give each effect an id of its own")
	s.post("/claim", strings.Replace(claim, `"a"`, `"b"`, 1)).settlement() // another id is another claim

	s.post("/settle/a", `{"result":{}}`, token).is(200, `{"status":"committed","request_id":"a"}`)
	s.post("/claim", claim).is(200, `{"status":"SKIP","request_id":"a","agent_id":null}`)
}

func TestANonceEndsWithTheLeaseAndAfterHalfAMinute(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	claim := func(id string) string { return `{"request_id":"` + id + `","action":"charge","nonce":"` + nonce + `"}` }
	s.post("/claim", claim("a")).settlement()
	s.expire("a")
	s.post("/claim", claim("a")).is(200, `{"status":"PENDING","request_id":"a","agent_id":null,"in_doubt":true,"reason":"its lease was over"}`)
	s.post("/claim", claim("b")).settlement()
	s.exec(`UPDATE oncemill.claims SET claimed_at = claimed_at - interval '30 seconds' WHERE key = 'b'`)
	s.post("/claim", claim("b")).is(200, `{"status":"PENDING","request_id":"b","agent_id":null}`)
	token := s.post("/claim", claim("c")).settlement()
	s.post("/release/c", "", token).is(200, `{"status":"released","request_id":"c"}`)
	if again := s.post("/claim", claim("c")).settlement(); again == token {
		t.Error("a released claim has come back with its token")
	}
	token = s.post("/claim", claim("d")).settlement()
	s.post("/fail/d", `{}`, token).is(200, `{"status":"failed","request_id":"d"}`)
	s.post("/claim", claim("d")).is(200, `{"status":"SKIP","request_id":"d","agent_id":null,"failed":true}`)
}

func TestANonceBelongsToItsTenant(t *testing.T) {
	t.Parallel()
	tenants, keys := withTenants(t)
	s := newSite(t, tenants)
	const claim = `{"request_id":"a","action":"charge","nonce":"` + nonce + `"}`
	if s.post("/claim", claim, keys["acme"]).settlement() == s.post("/claim", claim, keys["globex"]).settlement() {
		t.Error("two tenants have one settlement token")
	}
	s.wantEvents("a", "claimed", "claimed")
	s.post("/claim", claim, keys["acme operator"]).settlement() // another key of the same tenant
	s.wantEvents("a", "claimed", "claimed", "repeated")
}

func TestAnIDBelongsToOneFingerprint(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	conflicts := func(body string) {
		t.Helper()
		s.post("/claim", body).refused(409, "key_reused", "request_id was claimed with another fingerprint or payload: give each effect an id of its own")
	}
	const pending = `{"status":"PENDING","request_id":"a","agent_id":null}`
	token := s.post("/claim", `{"request_id":"a","action":"x","payload":{"b":1,"a":[1.50,"ü"]}}`).settlement()
	s.post("/claim", "{\"request_id\":\"a\",\"action\":\"x\",\"payload\":\t{ \"a\" :[1.5, \"\\u00fc\"],\n\"b\":1}}").is(200, pending)
	s.post("/claim", `{"request_id":"a","action":"x"}`).is(200, pending)
	conflicts(`{"request_id":"a","action":"x","payload":{"b":2,"a":[1.5,"ü"]}}`)
	conflicts(`{"request_id":"a","action":"x","fingerprint":"f"}`)
	s.post("/settle/a", `{"result":{}}`, token)
	conflicts(`{"request_id":"a","action":"x","payload":[]}`) // also when it is settled
	s.get("/events?kind=conflict&order=desc", asAuditor).lists("payload", []any{}, nil, map[string]any{"b": 2, "a": []any{1.5, "ü"}})

	s.post("/claim", `{"request_id":"b","action":"x","fingerprint":"f","payload":1}`).settlement()
	s.post("/claim", `{"request_id":"b","action":"x","fingerprint":"f","payload":2}`).is(200, `{"status":"PENDING","request_id":"b","agent_id":null}`)
}

func TestALeaseIsWhatTheCallerSaysAndCanBeExtended(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	length := func(a *answer, from string) float64 {
		t.Helper()
		var since float64
		noError(t, s.db.QueryRow(`SELECT extract(epoch FROM `+from+`) FROM oncemill.claims WHERE key = 'a'`).Scan(&since))
		until, _ := a.fields()["lease_until"].(float64)
		return until - since
	}
	first := s.post("/claim", `{"request_id":"a","action":"x","lease_seconds":100.5}`)
	if got := length(first, "claimed_at"); got < 100.4999 || got > 100.5001 {
		t.Errorf("the lease has %v s", got)
	}
	s.post("/claim", `{"request_id":"b","action":"x","lease_seconds":2592000}`).settlement()
	longer := s.post("/extend/a", `{"lease_seconds":1000}`, first.settlement())
	if got := length(longer, "clock_timestamp()"); got < 990 || got > 1000 {
		t.Errorf("the lease has %v s", got)
	}
	shorter := s.post("/extend/a", "", first.settlement())
	if longer.fields()["lease_until"] != shorter.fields()["lease_until"] {
		t.Errorf("%s, after %s", shorter.body, longer.body)
	}
	s.wantEvents("a", "claimed", "extended", "extended")
}

func TestWithoutItsTokenNobodyEndsAClaim(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	token, others := s.claim("a"), s.claim("b")
	flipped := token[:len(token)-1] + string("0123456789abcdef"[(strings.IndexByte("0123456789abcdef", token[len(token)-1])+1)%16])
	name, digits, _ := strings.Cut(token, ": ")
	for _, wrong := range []string{"", others, flipped, name + ": " + digits[:63], token + "0", name + ": " + strings.ToUpper(digits), name + ": " + strings.Repeat("z", 64)} {
		for _, path := range []string{"/settle/a", "/release/a", "/fail/a", "/extend/a"} {
			s.post(path, `{"result":{}}`, wrong).refused(403, "settlement_token", "settlement capability required")
			s.post(path+"/nobody's", `{"result":{}}`, wrong).refused(403, "settlement_token", "settlement capability required")
		}
	}
	s.wantEvents("a", "claimed")
}

// What ends a claim can be repeated, for its answer may get lost; and what ends it in
// another way is refused, and noted.
func TestAnEndIsRepeatedAndNoOtherFollows(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	bodies := map[string]string{"settle": `{"result":{"n":1}}`, "fail": `{"reason":"declined"}`, "release": `{"reason":"not sent"}`, "extend": ``}
	status := map[string]string{"settle": "committed", "fail": "failed", "release": "released"}
	again := map[string]string{"settle": "already_committed", "fail": "failed", "release": "released"}
	outcome := map[string]string{"settle": "settled", "fail": "failed"}
	for _, first := range []string{"settle", "fail", "release"} {
		token := s.claim(first)
		s.post("/"+first+"/"+first, bodies[first], token).is(200, `{"status":"`+status[first]+`","request_id":"`+first+`"}`)
		s.another().post("/"+first+"/"+first, bodies[first], token).is(200, `{"status":"`+again[first]+`","request_id":"`+first+`"}`)
		for then, body := range bodies {
			if then == first {
				continue
			}
			got := s.post("/"+then+"/"+first, body, token)
			if first == "release" {
				got.refused(404, "not_found", "request_id not found")
			} else {
				got.is(409, `{"detail":"the claim has ended as `+outcome[first]+`","type":"urn:oncemill:problem:`+outcome[first]+`","title":"Conflict","status":409,"code":"`+outcome[first]+`","outcome":"`+outcome[first]+`"}`)
			}
		}
		ended := map[string]string{"settle": "settled", "fail": "failed", "release": "released"}[first]
		s.wantEvents(first, "claimed", ended, "refused", "refused", "refused")
	}
	s.get("/events?kind=refused&request_id=fail&limit=1", asAuditor).lists("request_id", "fail")
}

// The token of an attempt that was released does not end the next one.
func TestAnOlderAttemptIsFenced(t *testing.T) {
	t.Parallel()
	for _, old := range []bool{false, true} {
		s := newSite(t)
		s.handler.Legacy = old
		first := s.claim("a")
		s.post("/release/a", "", first).is(200, `{"status":"released","request_id":"a"}`)
		second := s.claim("a")
		for _, path := range []string{"/settle/a", "/fail/a", "/extend/a"} {
			s.post(path, `{"result":{}}`, first).refused(409, "fenced", "the claim is no longer yours: it was resolved, or released and claimed again")
		}
		s.post("/release/a", "", first).is(200, `{"status":"released","request_id":"a"}`) // it was, and the second attempt is not touched
		s.post("/settle/a", `{"result":{}}`, second).is(200, `{"status":"committed","request_id":"a"}`)
		s.wantEvents("a", "claimed", "released", "claimed", "refused", "refused", "refused", "settled")
		s.get("/audit?limit=1", asAuditor).lists("status", "COMMITTED")
	}
}

// However many call, through however many guards: one goes on.
func TestOneOfManyProceeds(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	guards := []*site{s, s.another(), s.another(func(h *guard.Handler) { h.Inbox.ClaimBatch = 0 })}
	const callers = 8
	var wg sync.WaitGroup
	answers := make(chan map[string]any, callers*len(guards))
	for range callers {
		for _, g := range guards {
			wg.Go(func() {
				answers <- g.post("/claim", `{"request_id":"a","action":"charge","amount":"1","currency":"EUR"}`).fields()
			})
		}
	}
	wg.Wait()
	close(answers)
	counts := make(map[any]int)
	for answer := range answers {
		counts[answer["status"]]++
	}
	if counts["PROCEED"] != 1 || counts["PENDING"] != callers*len(guards)-1 {
		t.Errorf("got %v", counts)
	}
	s.get("/summary", asAuditor).is(200, `{"items":[{"tenant":null,"action":"charge","currency":"EUR","blocked":23,"effects":1,"amount":"1"}],"blocked":23,"effects":1}`)
}

// Who is gone before the answer will never see a token: the id is free, or with a nonce
// the call can be repeated.
func TestACallerWhoIsGoneBlocksNobody(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.post("/claim", `{"request_id":"first","action":"charge"}`).settlement() // all statements are prepared then
	for id, nonced := range map[string]string{"without": "", "with": `,"nonce":"` + nonce + `"`} {
		body := `{"request_id":"` + id + `","action":"charge"` + nonced + `}`
		ctx, cancel := context.WithCancel(within(t))
		defer cancel()
		gone := serverSide(s.request(http.MethodPost, "/claim", body)).WithContext(ctx)
		blocker := must(s.db.BeginTx(within(t), nil))
		must(blocker.Exec(`LOCK TABLE oncemill.events IN EXCLUSIVE MODE`))
		recorder, over := newRecorder(), make(chan struct{})
		go func() {
			defer close(over)
			s.handler.ServeHTTP(recorder, gone)
		}()
		s.until("the claim waits", func() bool {
			return s.count(`SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'oncemill.events'::regclass`) > 0
		})
		cancel()
		noError(t, blocker.Rollback())
		<-over
		if recorder.code == http.StatusOK != (id == "with") {
			t.Errorf("%s a nonce: got %d %s", id, recorder.code, recorder.text.String())
		}
		s.post("/claim", body).settlement()
	}
	s.wantEvents("without", "claimed", "released", "claimed")
	s.wantEvents("with", "claimed", "repeated")
}

// All who repeat one call at a time get the claim that it made.
func TestACallThatIsMadeManyTimesIsOneClaim(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	guards := []*site{s, s.another(), s.another(func(h *guard.Handler) { h.Inbox.ClaimBatch = 0 })}
	const times = 5
	answers := make(chan *answer, times*len(guards))
	for range times {
		for _, g := range guards {
			go func() { answers <- g.post("/claim", `{"request_id":"a","action":"x","nonce":"`+nonce+`"}`) }()
		}
	}
	first := (<-answers).settlement()
	for range times*len(guards) - 1 {
		if token := (<-answers).settlement(); token != first {
			t.Errorf("got the tokens %s and %s", token, first)
		}
	}
}
