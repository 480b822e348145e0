package webhook_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"database/sql"
	"database/sql/driver"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/webhook"
)

// nowhere is a database that is away: a request that gets there has passed its verifier,
// and is answered with 503.
type nowhere struct{}

func (nowhere) Connect(context.Context) (driver.Conn, error) { return nil, errors.New("away") }
func (nowhere) Driver() driver.Driver                        { return nil }

func fuzzInbox(f *testing.F) *oncemill.Inbox {
	db := sql.OpenDB(nowhere{})
	f.Cleanup(func() { db.Close() })
	return &oncemill.Inbox{DB: db}
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// answer is what a receiver answers to a request whose URL, header and body may be anything.
func answer(h http.Handler, query string, header http.Header, body []byte) int {
	r := &http.Request{Method: "POST", URL: &url.URL{Path: "/", RawQuery: query}, Header: header, ContentLength: -1, Body: io.NopCloser(strings.NewReader(string(body)))}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r.WithContext(context.Background()))
	return w.Code
}

// passed tells whether a request was verified, and wants an answer that is one of ours.
func passed(t *testing.T, code int) bool {
	switch code {
	case 503:
		return true
	case 400, 403, 413:
		return false
	}
	t.Fatalf("answered %d", code)
	return false
}

func FuzzStripe(f *testing.F) {
	receiver := &webhook.Stripe{Inbox: fuzzInbox(f), Topic: "t", Secrets: []string{"old", stripeSecret}, Logger: quiet}
	f.Add([]byte(stripeEvent("evt_1", 1)), "t=1492774577,v1=00", true)
	f.Add([]byte(`{"id": "evt_1", "object": "v2.core.event", "type": "x", "created": "2026-01-01T00:00:00Z"}`), "", true)
	f.Add([]byte(`{"id": "evt_1", "object": "event", "type": "x", "created": 9223372036854775807, "livemode": true}`), "t=9223372036854775807,v1=00", true)
	f.Add([]byte(`{"id": null, "object": [], "type": {}, "created": {}, "livemode": "x"}`), "v1=,t=", false)
	f.Add([]byte("\x00\xff"), "=,=,=", false)
	f.Fuzz(func(t *testing.T, body []byte, header string, sign bool) {
		if sign {
			at := time.Now().Unix()
			mac := hmac.New(sha256.New, []byte(stripeSecret))
			fmt.Fprintf(mac, "%d.%s", at, body)
			header = fmt.Sprintf("t=%d,v1=%s", at, hex.EncodeToString(mac.Sum(nil)))
		}
		code := answer(receiver, "", http.Header{"Stripe-Signature": {header}}, body)
		if passed(t, code) && !sign || sign && code == 403 {
			t.Errorf("answered %d", code)
		}
	})
}

func FuzzGitHub(f *testing.F) {
	receiver := &webhook.GitHub{Inbox: fuzzInbox(f), Topic: "t", Secrets: []string{"old", githubSecret}, Logger: quiet}
	f.Add([]byte(`{}`), "sha256=00", "push", "guid", true)
	f.Add([]byte("Hello, World!"), "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e18", "\x00", "\xff", false)
	f.Add([]byte("\x00"), "sha1=01dc10d0c83e72ed246219cdd91669667fe2ca59", "", "", false)
	f.Fuzz(func(t *testing.T, body []byte, header, event, guid string, sign bool) {
		mac := hmac.New(sha256.New, []byte(githubSecret))
		mac.Write(body)
		right := "sha256=" + hex.EncodeToString(mac.Sum(nil))
		if sign {
			header = right
		}
		code := answer(receiver, "", http.Header{"X-Hub-Signature-256": {header}, "X-Github-Event": {event}, "X-Github-Delivery": {guid}}, body)
		if passed(t, code) && !strings.EqualFold(header, right) || sign && code == 403 {
			t.Errorf("answered %d to %q", code, header)
		}
	})
}

func FuzzTwilio(f *testing.F) {
	receiver := &webhook.Twilio{Inbox: fuzzInbox(f), Topic: "t", Secrets: []string{"old", twilioSecret}, URL: twilioURL, Logger: quiet}
	form := "application/x-www-form-urlencoded"
	f.Add([]byte(smsBody), "foo=1&bar=2", form, "RSOYDt4T1cUTdK1PDd93/VVr8B8=", "token", true)
	f.Add([]byte("a=1&a=1&a=0&b&=&%00=%ff"), "", form+"; charset=x", "", "", true)
	f.Add([]byte("%zz;"), "%zz;\x00", form, "====", "\x00", true)
	f.Add([]byte(`{"property": "value", "boolean": true}`), "bodySHA256=0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620", "application/json", "y77kIzt2vzLz71DgmJGsen2scGs=", "", false)
	f.Fuzz(func(t *testing.T, body []byte, query, kind, header, token string, sign bool) {
		if sign { // the URL alone, which is all that is signed of a body that is no form
			mac := hmac.New(sha1.New, []byte(twilioSecret))
			mac.Write([]byte(twilioURL + "?" + query))
			header = base64.StdEncoding.EncodeToString(mac.Sum(nil))
		}
		code := answer(receiver, query, http.Header{"X-Twilio-Signature": {header}, "Content-Type": {kind}, "I-Twilio-Idempotency-Token": {token}}, body)
		sum := sha256.Sum256(body)
		if passed(t, code) && !strings.HasPrefix(strings.ToLower(strings.TrimSpace(kind)), form) &&
			!strings.Contains(strings.ToLower(query), "bodysha256=") {
			t.Errorf("answered %d though nothing shows that the body is %x", code, sum)
		}
	})
}

// FuzzTwilioForm has the receiver agree with a signature that is made in another way: one
// parameter after the other, of pairs in any order.
func FuzzTwilioForm(f *testing.F) {
	receiver := &webhook.Twilio{Inbox: fuzzInbox(f), Topic: "t", Secrets: []string{twilioSecret}, URL: twilioURL, Logger: quiet}
	f.Add("b", "2", "a", "1")
	f.Add("a", "2", "a", "1")
	f.Add("a", "1", "a", "1")
	f.Add("", "", "\x00", "\xff")
	f.Add("&", "=", "%", "+ ")
	f.Fuzz(func(t *testing.T, name1, value1, name2, value2 string) {
		signed := twilioURL
		switch first, second := name1+value1, name2+value2; {
		case name1 == name2 && value1 == value2:
			signed += first
		case name1 < name2 || name1 == name2 && value1 < value2:
			signed += first + second
		default:
			signed += second + first
		}
		body := url.QueryEscape(name1) + "=" + url.QueryEscape(value1) + "&" + url.QueryEscape(name2) + "=" + url.QueryEscape(value2)
		d := fromTwilio(twilioSecret, "", body, signed, "token")
		if code := answer(receiver, "", d.header, []byte(body)); code != 503 {
			t.Errorf("answered %d to %q signed %q", code, body, signed)
		}
	})
}
