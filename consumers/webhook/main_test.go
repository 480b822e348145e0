package webhook_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/webhook"
	"github.com/oncemill/oncemill/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	stripeSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	githubSecret = "It's a Secret to Everybody"
	twilioSecret = "12345"
	twilioURL    = "https://mycompany.com/myapp.php"
)

// A site is a database, and what receivers log.
type site struct {
	t     *testing.T
	db    *sql.DB
	inbox *oncemill.Inbox
	log   *testenv.Log // none of it may have a secret or a body in it
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, db: testenv.DB(t), log: &testenv.Log{}}
	// A delivery waits for another of the same event, however slow the machine is.
	s.inbox = &oncemill.Inbox{DB: s.db, LockWait: time.Minute}
	return s
}

func (s *site) logger() *slog.Logger { return s.log.Logger() }

func (s *site) stripe() *webhook.Stripe {
	return &webhook.Stripe{Inbox: s.inbox, Topic: "events", Secrets: []string{stripeSecret}, Timeout: time.Minute, Logger: s.logger()}
}

func (s *site) github() *webhook.GitHub {
	return &webhook.GitHub{Inbox: s.inbox, Topic: "events", Secrets: []string{githubSecret}, Timeout: time.Minute, Logger: s.logger()}
}

func (s *site) twilio() *webhook.Twilio {
	return &webhook.Twilio{Inbox: s.inbox, Topic: "events", Secrets: []string{twilioSecret}, URL: twilioURL, Timeout: time.Minute, Logger: s.logger()}
}

// A delivery is a request that a provider sends.
type delivery struct {
	method string
	target string
	header http.Header
	body   string
}

// with returns the delivery with a header set to some values, none of which removes it.
func (d delivery) with(name string, values ...string) delivery {
	d.header = d.header.Clone()
	d.header[http.CanonicalHeaderKey(name)] = values
	return d
}

func (d delivery) withBody(body string) delivery {
	d.body = body
	return d
}

func (d delivery) request() *http.Request {
	r := httptest.NewRequest(d.method, d.target, strings.NewReader(d.body))
	r.Header = d.header.Clone()
	return r
}

func post(target, body string, headers ...string) delivery {
	d := delivery{method: http.MethodPost, target: target, header: make(http.Header), body: body}
	for i := 0; i < len(headers); i += 2 {
		d.header.Set(headers[i], headers[i+1])
	}
	return d
}

// stripeEvent is the body of an event. Some of it differs between deliveries.
func stripeEvent(id string, pending int) string {
	return fmt.Sprintf(`{"id": %q, "object": "event", "type": "invoice.paid", "livemode": true, "created": %d, "pending_webhooks": %d, "data": {"object": {"id": "in_1", "text": "\u0000"}}}`,
		id, time.Now().Unix(), pending)
}

func fromStripe(secret, body string, at time.Time) delivery {
	mac := hmac.New(sha256.New, []byte(secret))
	fmt.Fprintf(mac, "%d.%s", at.Unix(), body)
	return post("/", body, "Content-Type", "application/json; charset=utf-8",
		"Stripe-Signature", fmt.Sprintf("t=%d,v1=%s,v0=00", at.Unix(), hex.EncodeToString(mac.Sum(nil))))
}

func fromGitHub(secret, body, guid string) delivery {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(body))
	return post("/", body, "Content-Type", "application/json", "X-GitHub-Event", "push", "X-GitHub-Delivery", guid,
		"X-GitHub-Hook-ID", "292430182", "X-Hub-Signature-256", "sha256="+hex.EncodeToString(mac.Sum(nil)))
}

// fromTwilio signs what the test says is signed: the URL and the parameters.
func fromTwilio(secret, query, body, signed, token string) delivery {
	mac := hmac.New(sha1.New, []byte(secret))
	mac.Write([]byte(signed))
	d := post("/hook"+query, body, "Content-Type", "application/x-www-form-urlencoded",
		"X-Twilio-Signature", base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	if token != "" {
		d.header.Set("I-Twilio-Idempotency-Token", token)
	}
	return d
}

const (
	smsBody   = "MessageSid=SM1&MessageStatus=delivered&To=%2B15551234567"
	smsSigned = twilioURL + "MessageSidSM1MessageStatusdeliveredTo+15551234567"
)

// deliver has a receiver answer a request.
func deliver(h http.Handler, d delivery) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, d.request())
	return w
}

// wantStatus wants an answer, and no secret or body in what is answered and logged.
func (s *site) wantStatus(w *httptest.ResponseRecorder, want int, what string) {
	s.t.Helper()
	if w.Code != want {
		s.t.Errorf("%s: answered %d (%s), want %d\n%s", what, w.Code, strings.TrimSpace(w.Body.String()), want, s.log)
	}
	for _, private := range []string{stripeSecret, githubSecret, "pending_webhooks", "15551234567"} {
		if strings.Contains(w.Body.String()+s.log.String(), private) {
			s.t.Errorf("%s: %q is in the answer or in the log", what, private)
		}
	}
}

func (s *site) count(query string, args ...any) (n int) {
	s.t.Helper()
	must(s.t, s.db.QueryRow(query, args...).Scan(&n))
	return n
}

// wantStored wants so many events in the outbox, and as many claims.
func (s *site) wantStored(want int) {
	s.t.Helper()
	rows, claims := s.count(`SELECT count(*) FROM oncemill.outbox`), s.count(`SELECT count(*) FROM oncemill.claims`)
	if rows != want || claims != want {
		s.t.Errorf("%d rows and %d claims, want %d", rows, claims, want)
	}
}

// A row is what a worker will get of an event.
type row struct {
	topic, uuid string
	metadata    map[string]string
	payload     string
}

// only returns the only row in the outbox.
func (s *site) only() (r row) {
	s.t.Helper()
	s.wantStored(1)
	var metadata, payload []byte
	must(s.t, s.db.QueryRow(`SELECT topic, uuid, metadata, payload FROM oncemill.outbox`).Scan(&r.topic, &r.uuid, &metadata, &payload))
	must(s.t, json.Unmarshal(metadata, &r.metadata))
	r.payload = string(payload)
	return r
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
