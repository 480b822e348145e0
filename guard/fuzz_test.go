package guard_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/guard"
	"github.com/oncemill/oncemill/internal/testenv"
)

// fuzzed is a guard without a connection. Old clients are served, so that what is made up
// gets further.
func fuzzed(f *testing.F) *guard.Handler {
	f.Helper()
	db := testenv.DB(f)
	db.SetMaxOpenConns(4)
	h := &guard.Handler{
		Inbox: &oncemill.Inbox{DB: db}, AuditToken: auditToken, Legacy: true, TestCalls: 1 << 30,
		Logger: slog.New(slog.DiscardHandler),
	}
	if err := h.Check(context.Background()); err != nil {
		f.Fatal(err)
	}
	return h
}

// ask sends a request whose target is as it stands, and wants an answer that is none of
// 5xx, in JSON.
func ask(t *testing.T, h *guard.Handler, method, target, body string, headers ...string) *recorder {
	t.Helper()
	u, err := url.ParseRequestURI(target)
	if err != nil { // no server would take it
		return newRecorder()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, "http://guard/", strings.NewReader(body))
	noError(t, err)
	r.URL, r.RemoteAddr = u, "192.0.2.1:1"
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		r.Header.Set(name, value)
	}
	w := newRecorder()
	h.ServeHTTP(w, r)
	if w.code >= 500 {
		t.Fatalf("%s %q %q: status %d: %s", method, target, body, w.code, w.text.String())
	}
	if w.head.Get("Content-Type") == "application/json" && !(json.Valid(w.text.Bytes()) && utf8.Valid(w.text.Bytes())) {
		t.Fatalf("%s %q %q: %q is no JSON", method, target, body, w.text.String())
	}
	return w
}

func FuzzClaimBody(f *testing.F) {
	h := fuzzed(f)
	for field, values := range wrongFields() {
		for _, value := range values {
			if len(value) < 2000 {
				f.Add(bodyOf(map[string]string{"request_id": `"a"`, "action": `"x"`, field: value}))
			}
		}
	}
	for body := range unreadable() {
		if len(body) < 2000 {
			f.Add(body)
		}
	}
	f.Add(`{"agent_id":"a","action_type":"b","scope":"c","payload":{"a":[1,2.5,"\ud83d\ude00"]}}`)
	f.Add(`{"request_id":"a","action":"x","nonce":"` + nonce + `","amount":-1.5e-3,"currency":"EUR","lease_seconds":1e2,"replay":true,"fingerprint":"f"}`)
	f.Fuzz(func(t *testing.T, body string) {
		ask(t, h, http.MethodPost, "/claim", body)
		ask(t, h, http.MethodPost, "/claim/test", body)
		ask(t, h, http.MethodPost, "/claim", body, asAuditor)
	})
}

func FuzzSettleBody(f *testing.F) {
	h := fuzzed(f)
	for body := range unreadable() {
		if len(body) < 2000 {
			f.Add(body)
		}
	}
	f.Add(`{"result":{"a":[null,"\u0000"]},"reason":"r","lease_seconds":1,"verdict":"happened","note":"n"}`)
	f.Add(`{"result":"x","verdict":"not happened","note":"n","attempt":1,"tenant":""}`)
	f.Fuzz(func(t *testing.T, body string) {
		for _, path := range []string{"/extend/", "/settle/", "/fail/", "/release/", "/resolve/"} {
			ask(t, h, http.MethodPost, "/claim", `{"request_id":"`+path+`","action":"x"}`)
			ask(t, h, http.MethodPost, path+url.PathEscape(path), body, asAuditor)
			ask(t, h, http.MethodPost, path+"nobody's", body, asAuditor)
		}
		ask(t, h, http.MethodGet, "/audit", "", asAuditor)
		ask(t, h, http.MethodGet, "/events", "", asAuditor)
	})
}

// Whatever can be claimed can be ended, by its escaped id; and no path is too odd.
func FuzzPath(f *testing.F) {
	h := fuzzed(f)
	for _, id := range []string{"a", "a/b", "//", "%", "%2F", "?", "a?b", "#", "ü", "\x00", "\xff", "\uFFFD", ".", "../..", "oncemill:x", "a b+c", "x\x7f\r\n", strings.Repeat("ü", 256), strings.Repeat("x", 513)} {
		f.Add(id)
	}
	f.Fuzz(func(t *testing.T, id string) {
		text, _ := json.Marshal(id)
		if utf8.ValidString(id) {
			answer := ask(t, h, http.MethodPost, "/claim", `{"request_id":`+string(text)+`,"action":"x"}`)
			var claimed struct {
				Token string `json:"settlement_token"`
			}
			noError(t, json.Unmarshal(answer.text.Bytes(), &claimed))
			if answer.code == http.StatusOK {
				ended := ask(t, h, http.MethodPost, "/release/"+url.PathEscape(id), "", "X-SafeAgent-Settlement-Token: "+claimed.Token)
				if ended.code != http.StatusOK {
					t.Fatalf("%q was claimed, and cannot be released: %d %s", id, ended.code, ended.text.String())
				}
			}
		}
		for _, path := range []string{"/settle/", "/resolve/", "/", ""} {
			ask(t, h, http.MethodPost, path+id, `{"result":1,"verdict":"never","note":"n"}`, asAuditor)
		}
	})
}

func FuzzQuery(f *testing.F) {
	h := fuzzed(f)
	ask := func(t *testing.T, target string) { t.Helper(); ask(t, h, http.MethodGet, target, "", asAuditor) }
	for _, query := range []string{
		"limit=1&offset=2", "cursor=MTAwMDAwMCBndWFyZCBhYmM", "cursor=MTAwMDAwMCA1", "cursor=LTIwMDAwMDAwMDAwMDAwMDAwMCAx", "from_ts=-2e11&to_ts=2e11", "from_ts=0x1p-2", "from_ts=1e-320",
		"status=IN_DOUBT&agent_id=a&action=b", "kind=in+doubt&order=asc&format=ndjson", "min_amount=-0&max_amount=" + strings.Repeat("9", 30) + "." + strings.Repeat("9", 20),
		"currency=%F0%9F%98%80&actor=a&request_id=b", "a;b", "%zz", "limit=%31", "tenant=", "cursor=OTk5OTk5OTk5OTk5OTk5OTkgMQ",
	} {
		f.Add(query)
	}
	f.Fuzz(func(t *testing.T, query string) {
		for _, path := range []string{"/audit?", "/events?", "/summary?"} {
			ask(t, path+query)
			ask(t, path+"limit=1&cursor="+url.QueryEscape(query))
		}
	})
}
