package guard_test

import (
	"net/http"
	"strings"
	"testing"
)

// wrongFields are values of a claim's fields that are refused, as JSON.
func wrongFields() map[string][]string {
	text := func(long int) []string {
		return []string{"1", "true", "[]", "{}", `"a\u0000b"`, `"\ud800"`, "\"\uFFFD\"", `"` + strings.Repeat("x", long+1) + `"`}
	}
	return map[string][]string{
		"request_id":    append(text(512), `""`, "null"),
		"action":        append(text(512), "null"),
		"agent_id":      text(512),
		"currency":      text(16),
		"fingerprint":   text(256),
		"nonce":         append(text(128), `""`, `"short"`, `"`+strings.Repeat("x", 21)+`"`, `"has spaces, has spaces, has"`, "\"ünïcödé-of-22-bytes-ü\""),
		"amount":        {"-1", `"-0.01"`, "-1e-5", "true", "[]", "{}", `""`, `"1e3"`, `"1,5"`, `"."`, `"1."`, `".5"`, `"+1"`, `"-"`, `"NaN"`, `"1 "`, `"` + strings.Repeat("9", 31) + `"`, `"0.` + strings.Repeat("1", 21) + `"`, "1e400", "1e31", "1e-30", `"\u0031\u0000"`},
		"lease_seconds": {"true", "[]", "{}", `"1"`, "0", "-1", "0.09", "2592000.1", "1e400", "1e300"},
		"replay":        {"1", `"true"`, "[]", "{}"},
		"payload":       {`"` + strings.Repeat("x", 65535) + `"`, strings.Repeat("[", 600) + strings.Repeat("]", 600), `{"a":1,"a":2}`, "1e999", strings.Repeat("9", 4301)},
	}
}

func TestAClaimNamesTheFieldThatIsWrong(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for field, values := range wrongFields() {
		for _, value := range values {
			members := map[string]string{"request_id": `"a"`, "action": `"x"`}
			members[field] = value
			s.post("/claim", bodyOf(members)).invalid("body", field, "")
			if field == "request_id" || field == "action" {
				continue
			}
			triple := map[string]string{"agent_id": `"a"`, "action_type": `"x"`, "scope": `"s"`}
			triple[field] = value
			s.post("/claim", bodyOf(triple)).invalid("body", field, "")
			s.post("/claim/test", bodyOf(triple)).invalid("body", field, "")
		}
	}
	for _, field := range []string{"agent_id", "action_type", "scope"} {
		for _, value := range append(wrongFields()["action"], "") {
			members := map[string]string{"agent_id": `"a"`, "action_type": `"x"`, "scope": `"s"`}
			if members[field] = value; value == "" {
				delete(members, field)
			}
			s.post("/claim/test", bodyOf(members)).invalid("body", field, "")
			s.post("/claim", bodyOf(members)).invalid("body", field, "")
		}
	}
	s.post("/claim", `{"request_id":"a"}`).is(422, invalidBody(`{"type":"missing","loc":["body","action"],"msg":"Field required"}`))
	s.post("/claim", `{}`).is(422, invalidBody(`{"type":"missing","loc":["body","request_id"],"msg":"Field required"},{"type":"missing","loc":["body","action"],"msg":"Field required"}`))
	s.wantNothing("wrong fields")
}

func invalidBody(details string) string {
	return `{"detail":[` + details + `],"type":"urn:oncemill:problem:invalid","title":"Unprocessable Entity","status":422,"code":"invalid"}`
}

func bodyOf(members map[string]string) string {
	var all []string
	for name, value := range members {
		all = append(all, `"`+name+`":`+value)
	}
	return "{" + strings.Join(all, ",") + "}"
}

// What a claim takes, so that what it refuses is no more than that.
func TestAClaimTakesWhatIsAtItsLimits(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	most := `"` + strings.Repeat("ü", 256) + `"`
	for field, values := range map[string][]string{
		"request_id":    {most},
		"action":        {most, `""`},
		"agent_id":      {most, `""`, "null"},
		"currency":      {`"` + strings.Repeat("x", 16) + `"`, "null"},
		"fingerprint":   {`"` + strings.Repeat("x", 256) + `"`, "null"},
		"nonce":         {`"` + strings.Repeat("x", 22) + `"`, `"` + strings.Repeat("-", 128) + `"`, "null"},
		"amount":        {"0", "1.50", `"1.50"`, "null", `"` + strings.Repeat("9", 30) + "." + strings.Repeat("9", 20) + `"`, "1e3", "1E+16", "2.5e-7", "1.0e-5"},
		"lease_seconds": {"100", "2592000", "1e2", "null"},
		"replay":        {"false", "true", "null"},
		"payload":       {"null", "0", `""`, `"` + strings.Repeat("x", 65534) + `"`, `"\ud800\u0000"`, strings.Repeat("[", 400) + strings.Repeat("]", 400)},
	} {
		for _, value := range values {
			s.exec(`DELETE FROM oncemill.claims`)
			members := map[string]string{"request_id": `"a"`, "action": `"x"`}
			members[field] = value
			s.post("/claim", bodyOf(members)).settlement()
		}
	}
	s.get("/events?limit=10&min_amount=0.0000001&max_amount=0.000001", asAuditor).lists("amount", "0.00000025")
	s.get("/events?max_amount=0.00001&min_amount=0.000005", asAuditor).lists("amount", "0.00001")
	s.get("/events?min_amount=10000000000000000&max_amount=10000000000000000", asAuditor).lists("amount", "10000000000000000")
}

// bodies are those that cannot be read, by where and why.
func unreadable() map[string]string {
	return map[string]string{
		"":                             "Field required",
		" \n":                          "Field required",
		"{":                            "JSON decode error: unexpected end of JSON input",
		`{"a":1}x`:                     "JSON decode error: invalid character 'x' after top-level value",
		`{"a":1}{}`:                    "JSON decode error",
		`{'a':1}`:                      "JSON decode error",
		`{"a":01}`:                     "JSON decode error",
		`{"a":NaN}`:                    "JSON decode error",
		"{\"a\":\"\n\"}":               "JSON decode error",
		"\ufeff{}":                     "JSON decode error",
		"\xff":                         "JSON decode error: not UTF-8",
		"{\"request_id\":\"\xff\"}":    "JSON decode error: not UTF-8",
		strings.Repeat("[", 100000):    "exceeded max depth",
		strings.Repeat(`{"a":`, 40000): "exceeded max depth",
		"null":                         "valid dictionary",
		"[]":                           "valid dictionary",
		"1":                            "valid dictionary",
		`"text"`:                       "valid dictionary",
		"true":                         "valid dictionary",
	}
}

func TestABodyThatCannotBeReadIsRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for body, says := range unreadable() {
		for _, path := range []string{"/claim", "/claim/test", "/settle/a", "/release/a", "/fail/a", "/extend/a", "/resolve/a"} {
			if strings.TrimSpace(body) == "" && (path == "/release/a" || path == "/fail/a" || path == "/extend/a") {
				continue // they need none
			}
			got := s.post(path, body, asAuditor)
			detail, _ := got.fields()["detail"].([]any)
			if got.status != 422 || len(detail) != 1 || !strings.Contains(mustJSON(t, detail[0]), says) {
				t.Errorf("%s: got %d %.300s, want 422 with %s", got.what, got.status, got.body, says)
			}
		}
	}
	huge := `{"request_id":"` + strings.Repeat("x", 256<<10) + `"}`
	for _, path := range []string{"/claim", "/claim/test", "/settle/a", "/release/a", "/fail/a", "/extend/a", "/resolve/a"} {
		s.post(path, huge, asAuditor).refused(413, "too_large", "the body is larger than 262144 bytes")
	}
	s.wantNothing("bodies")
}

func TestWhatEndsAClaimNamesTheFieldThatIsWrong(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	token := s.claim("a")
	deep := func(n int) string { return strings.Repeat(`{"a":`, n) + `"}\"{"` + strings.Repeat("}", n) }
	for _, value := range []string{"", deep(501), deep(9990), "1", `"x"`, "[]", "null", "true", `{"x":"` + strings.Repeat("x", 65536) + `"}`} {
		body := `{"result":` + value + `}`
		if value == "" {
			body = `{"outcome":{}}`
		}
		s.post("/settle/a", body, token).invalid("body", "result", "")
	}
	for _, value := range []string{"1", "[]", `"\u0000"`, `"` + strings.Repeat("x", 2049) + `"`} {
		s.post("/release/a", `{"reason":`+value+`}`, token).invalid("body", "reason", "")
		s.post("/fail/a", `{"reason":`+value+`}`, token).invalid("body", "reason", "")
	}
	for _, value := range wrongFields()["lease_seconds"] {
		s.post("/extend/a", `{"lease_seconds":`+value+`}`, token).invalid("body", "lease_seconds", "")
	}
	s.wantEvents("a", "claimed")
	other := s.claim("b")
	s.post("/settle/b", `{"result":`+deep(500)+`}`, other).is(200, `{"status":"committed","request_id":"b"}`)
	s.post("/settle/a", `{"result":{"x":"`+strings.Repeat("x", 65536-8)+`"}}`, token).is(200, `{"status":"committed","request_id":"a"}`)
	s.get("/audit", asAuditor).lists("request_id", "b", "a")
	s.get("/events?kind=settled", asAuditor).lists("request_id", "a", "b")
}

// A legacy client may settle with any JSON.
func TestALegacyResultIsAnyJSON(t *testing.T) {
	t.Parallel()
	s := newSite(t, legacy)
	for _, result := range []string{`{"a":1}`, `[1]`, `"x"`, `1.50`, `true`, `null`, `""`} {
		s.exec(`DELETE FROM oncemill.claims`)
		s.claim("a")
		s.post("/settle/a", `{"result": `+result+` }`).is(200, `{"status":"committed","request_id":"a"}`)
		s.post("/claim", `{"request_id":"a","action":"x"}`).is(200, `{"status":"SKIP","request_id":"a","agent_id":null,"existing":`+result+`}`)
	}
}

func TestAHeaderOfOursMayBeThereOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, name := range []string{"X-SafeAgent-Api-Key", "X-SafeAgent-Settlement-Token", "X-SafeAgent-Audit-Token"} {
		for _, path := range []string{"/claim", "/settle/a", "/resolve/a", "/sweep"} {
			s.post(path, `{"request_id":"a","action":"x"}`, name+": a", strings.ToLower(name)+": a").
				refused(400, "duplicate_header", "header "+name+" is there more than once: send one")
		}
	}
	s.wantNothing("headers")
}

// A body without a length is one like any other.
func TestABodyInPiecesIsRead(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	send := func(path, body string, headers ...string) int {
		t.Helper()
		r := s.request(http.MethodPost, path, body, headers...)
		r.ContentLength = -1
		if r.Body == nil {
			r.Body = http.NoBody
		}
		r.Body = struct{ readCloser }{r.Body}
		response, err := s.client.Do(r)
		noError(t, err)
		response.Body.Close()
		return response.StatusCode
	}
	if status := send("/claim", `{"request_id":"b","action":"x"}`); status != 200 {
		t.Errorf("/claim: %d", status)
	}
	token := s.claim("a")
	for _, path := range []string{"/extend/a", "/release/a"} {
		if status := send(path, "", token); status != 200 {
			t.Errorf("%s: %d", path, status)
		}
	}
}

type readCloser interface {
	Read(p []byte) (int, error)
	Close() error
}
