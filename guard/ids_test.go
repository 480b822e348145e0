package guard_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// Many clients do not escape what they put into a path.
func TestAnIDMayBeEscapedOrNot(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for id, unescaped := range map[string]string{
		"order/2026/1":            "order/2026/1",
		"a//b":                    "a//b",
		"/a":                      "/a",
		"a/":                      "a/",
		"//":                      "//",
		"..":                      "..",
		"a/../b/./c":              "a/../b/./c",
		"100%":                    "100%25",
		"c%2Fd":                   "c%2Fd", // as it stands
		"%":                       "%25",
		"a b":                     "a%20b",
		"a+b":                     "a+b",
		"a?b":                     "a?b",
		"a?":                      "a?",
		"a??":                     "a??",
		"a?b=c d&e=%":             "a?b=c%20d&e=%25",
		"a?b/c?d":                 "a?b/c?d",
		"a#b":                     "a%23b",
		"Zürich":                  "Zürich",
		"日本語/注文":                  "日本語/注文",
		"a;b,c:d@e=f&g$h!i*j'(k)": "a;b,c:d@e=f&g$h!i*j'(k)",
		`"quoted" <a>\{b}|^~[c]`:  `"quoted"%20<a>\{b}|^~[c]`,
		"order:TQQQ:buy:6:2026-05-21T09:42:00-04:00": "order:TQQQ:buy:6:2026-05-21T09:42:00-04:00",
		"tab\tand\nline":         "tab%09and%0Aline",
		strings.Repeat("x", 512): strings.Repeat("x", 512),
		strings.Repeat("ü", 256): strings.Repeat("ü", 256),
	} {
		for _, path := range []string{unescaped, url.PathEscape(id)} {
			token := s.claim(id)
			want := mustJSON(t, map[string]string{"status": "released", "request_id": id})
			s.post("/release/"+path, "", token).is(200, want)
			s.post("/release/"+path, "", token).is(200, want) // its answer was lost
		}
		token := s.claim(id)
		s.post("/extend/"+unescaped, "", token).is(200, mustJSON(t, map[string]string{"status": "extended", "request_id": id, "lease_until": "*"}))
		s.expire(id)
		s.post("/resolve/"+unescaped, `{"verdict":"happened","note":"seen"}`, asAuditor).is(200, mustJSON(t, map[string]string{"status": "resolved", "request_id": id, "verdict": "happened"}))
		s.get("/audit?limit=1", asAuditor).lists("request_id", id)
		s.get("/events?limit=1&kind=settled&request_id="+url.QueryEscape(id), asAuditor).lists("request_id", id)
	}
}

// Where a path can mean two claims, the token says which one.
func TestTheTokenDecidesWhichIDIsMeant(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	slash, percent := s.claim("a/b"), s.claim("a%2Fb")
	s.post("/settle/a%2Fb", `{"result":{}}`, percent).is(200, `{"status":"committed","request_id":"a%2Fb"}`)
	s.post("/settle/a%252Fb", `{"result":{}}`, slash).refused(403, "settlement_token", "settlement capability required")
	s.post("/settle/a%2Fb", `{"result":{}}`, slash).is(200, `{"status":"committed","request_id":"a/b"}`)

	query, without := s.claim("c?d"), s.claim("c")
	s.post("/settle/c?d", `{"result":{}}`, without).is(200, `{"status":"committed","request_id":"c"}`)
	s.post("/settle/c?d", `{"result":{}}`, query).is(200, `{"status":"committed","request_id":"c?d"}`)
	s.post("/settle/c", `{"result":{}}`, query).refused(403, "settlement_token", "settlement capability required")

	s.claim("e/f")
	s.claim("e%2Ff") // and where there is none, the attempt
	s.expire("e%2Ff")
	s.post("/resolve/e%2Ff", `{"verdict":"never","note":"n"}`, asAuditor).refused(409, "in_flight", "the claim is in flight: its lease is not over")
	s.post("/resolve/e%2Ff", fmt.Sprintf(`{"verdict":"never","note":"n","attempt":%d}`, s.attempt("e%2Ff", asAuditor)), asAuditor).
		is(200, `{"status":"resolved","request_id":"e%2Ff","verdict":"never"}`)
}

// A path of an old client, which has no token, means what is there.
func TestWithoutATokenThePathMeansWhatIsThere(t *testing.T) {
	t.Parallel()
	s := newSite(t, legacy)
	s.claim("a%2Fb")
	s.post("/settle/a%2Fb", `{"result":{}}`).is(200, `{"status":"committed","request_id":"a%2Fb"}`)
	s.claim("a/b")
	s.post("/settle/a%2Fb", `{"result":{}}`).is(200, `{"status":"committed","request_id":"a/b"}`)
	s.claim("c?")
	s.post("/settle/c?", `{"result":{}}`).is(200, `{"status":"committed","request_id":"c?"}`)

	s.claim("d/e") // and of two that are there, the one that is not settled
	s.claim("d%2Fe")
	s.post("/settle/d/e", `{"result":{}}`).is(200, `{"status":"committed","request_id":"d/e"}`)
	s.post("/settle/d%2Fe", `{"result":{}}`).is(200, `{"status":"committed","request_id":"d%2Fe"}`)
	s.post("/settle/d/e", `{"result":{}}`).is(200, `{"status":"already_committed","request_id":"d/e"}`)
}

func TestWhatCannotBeAnID(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for id, says := range map[string]string{
		"":                        "at least 1 character",
		strings.Repeat("x", 513):  "at most 512 bytes of UTF-8, but has 513: use a hash of it",
		strings.Repeat("ü", 257):  "but has 514",
		strings.Repeat("x", 5000): "at most 512 bytes of UTF-8, but has 5000",
		"oncemill:x":              "oncemill: prefix is reserved",
		"a\x00b":                  "no NUL",
		"a\uFFFDb":                "no U+FFFD",
	} {
		s.post("/claim", mustJSON(t, map[string]string{"request_id": id, "action": "a"})).invalid("body", "request_id", says)
		if id != "" && len(id) < 5000 {
			s.post("/settle/"+url.PathEscape(id), `{"result":{}}`, "X-SafeAgent-Settlement-Token: "+strings.Repeat("0", 64)).refused(403, "settlement_token", "settlement capability required")
			s.post("/resolve/"+url.PathEscape(id), `{"verdict":"never","note":"n"}`, asAuditor).refused(404, "not_found", "request_id not found")
		}
	}
	for _, half := range []string{`"\ud800"`, `"\udc00x"`, `"\ud800\ud800"`} {
		s.post("/claim", `{"request_id":`+half+`,"action":"a"}`).invalid("body", "request_id", "no U+FFFD")
	}
	long := strings.Repeat("s", 512)
	s.post("/claim", `{"agent_id":"a","action_type":"b","scope":"`+long+`"}`).invalid("body", "scope", "agent_id:action_type:scope: String should have at most 512 bytes of UTF-8, but has 516")
	s.post("/claim", `{"agent_id":"oncemill","action_type":"b","scope":"c"}`).invalid("body", "scope", "oncemill: prefix is reserved")
	s.post("/settle/%ff", `{"result":{}}`).refused(403, "settlement_token", "settlement capability required")
	s.wantNothing("wrong ids")
}

// Behind a prefix, too, a path is read as it was sent.
func TestAGuardBehindAPrefix(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	mux := http.NewServeMux()
	mux.Handle("/guard/", http.StripPrefix("/guard", s.handler))
	server := httptest.NewServer(mux)
	defer server.Close()
	for id, path := range map[string]string{"a/b": "a%2Fb", "c/d": "c/d", "e?f": "e?f", "100%": "100%25"} {
		r := s.request(http.MethodPost, "/guard/release/"+path, "", s.claim(id))
		r.URL.Host = strings.TrimPrefix(server.URL, "http://")
		response, err := server.Client().Do(r)
		noError(t, err)
		if response.Body.Close(); response.StatusCode != http.StatusOK {
			t.Errorf("%s: status %d", path, response.StatusCode)
		}
	}
}
