package guard_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/guard"
	"github.com/oncemill/oncemill/internal/testenv"
)

// A site is a guard on a database of its own.
type site struct {
	t       *testing.T
	url     string
	db      *sql.DB // the test's, beside the guard's own
	handler *guard.Handler
	server  *httptest.Server
	client  *http.Client
	log     *logbook
}

const auditToken = "an-audit-token-of-at-least-32-characters"

// newSite serves a guard until the test ends.
func newSite(t *testing.T, changes ...func(*guard.Handler)) *site {
	t.Helper()
	address := testenv.PostgresURL(t)
	return (&site{t: t, url: address, db: testenv.Open(t, address)}).another(changes...)
}

// another serves one more guard on the same database, with a pool of its own.
func (s *site) another(changes ...func(*guard.Handler)) *site {
	s.t.Helper()
	return s.at(s.url, changes...)
}

// at serves a guard that reaches the same database at another address.
func (s *site) at(address string, changes ...func(*guard.Handler)) *site {
	s.t.Helper()
	a := s.unchecked(address, changes...)
	noError(s.t, a.handler.Check(within(s.t)))
	return a
}

func (s *site) unchecked(address string, changes ...func(*guard.Handler)) *site {
	s.t.Helper()
	db := testenv.OpenByIndex(s.t, address)
	db.SetMaxOpenConns(8)
	db.SetMaxIdleConns(8)
	a := &site{t: s.t, url: s.url, db: s.db, log: new(logbook)}
	logger := slog.New(slog.NewJSONHandler(a.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	a.handler = &guard.Handler{
		Inbox:      &oncemill.Inbox{DB: db, ClaimBatch: 64, DrainTimeout: 5 * time.Second, Logger: logger},
		AuditToken: auditToken, Logger: logger,
	}
	for _, change := range changes {
		change(a.handler)
	}
	a.server = httptest.NewServer(a.handler)
	s.t.Cleanup(a.server.Close)
	a.client = a.server.Client()
	a.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return a
}

func legacy(h *guard.Handler) { h.Legacy = true }

// withTenants gives a guard the tenants acme and globex, each with a key and an operator's
// key.
func withTenants(t *testing.T) (change func(*guard.Handler), keys map[string]string) {
	t.Helper()
	keys = make(map[string]string)
	var entries []guard.TenantEntry
	for _, name := range []string{"acme", "globex"} {
		apiKey, entry := newTenant(name)
		operator, key := guard.NewAPIKey()
		key.Operator = true
		entry.Keys = append(entry.Keys, key)
		entries = append(entries, entry)
		keys[name], keys[name+" operator"] = "X-SafeAgent-Api-Key: "+apiKey, "X-SafeAgent-Api-Key: "+operator
	}
	file := newFile(t, entries...)
	return func(h *guard.Handler) { h.Tenants = &guard.Tenants{File: file, Logger: h.Logger} }, keys
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// An answer is what a guard has answered.
type answer struct {
	t      *testing.T
	what   string
	status int
	header http.Header
	body   []byte
}

const asAuditor = "X-SafeAgent-Audit-Token: " + auditToken

// settlement is the header with the token of a PROCEED.
func (a *answer) settlement() string {
	a.t.Helper()
	token, _ := a.fields()["settlement_token"].(string)
	if a.status != http.StatusOK || len(token) != 64 {
		a.t.Fatalf("%s: status %d, want PROCEED: %s", a.what, a.status, a.body)
	}
	return "X-SafeAgent-Settlement-Token: " + token
}

// request makes a request whose target is sent as it is.
func (s *site) request(method, target, body string, headers ...string) *http.Request {
	s.t.Helper()
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	r, err := http.NewRequestWithContext(within(s.t), method, s.server.URL, reader)
	noError(s.t, err)
	r.URL = &url.URL{Scheme: "http", Host: r.URL.Host, Opaque: target}
	for _, header := range headers {
		if name, value, ok := strings.Cut(header, ": "); ok {
			r.Header.Add(name, value)
		}
	}
	return r
}

// do sends a request, and wants the answer to be as the description has it.
func (s *site) do(method, target, body string, headers ...string) *answer {
	s.t.Helper()
	response, err := s.client.Do(s.request(method, target, body, headers...))
	noError(s.t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	noError(s.t, err)
	a := &answer{s.t, fmt.Sprintf("%s %.200s %.200s", method, target, body), response.StatusCode, response.Header, text}
	wantDescribed(s.t, method, target, a)
	return a
}

func (s *site) post(target, body string, headers ...string) *answer {
	s.t.Helper()
	return s.do(http.MethodPost, target, body, headers...)
}

func (s *site) get(target string, headers ...string) *answer {
	s.t.Helper()
	return s.do(http.MethodGet, target, "", headers...)
}

// claim claims an id that is to be had, and returns the header that settles it.
func (s *site) claim(id string, headers ...string) (token string) {
	s.t.Helper()
	return s.post("/claim", mustJSON(s.t, map[string]string{"request_id": id, "action": "charge"}), headers...).settlement()
}

// fields are those of the answer's JSON object.
func (a *answer) fields() (fields map[string]any) {
	a.t.Helper()
	if err := json.Unmarshal(a.body, &fields); err != nil {
		a.t.Fatalf("%s: %v: %s", a.what, err, a.body)
	}
	return fields
}

// is wants the answer to be a JSON object and nothing else. "*" stands for anything.
func (a *answer) is(status int, want string) *answer {
	a.t.Helper()
	if a.status != status || !matches(jsonOf(a.t, want), jsonOf(a.t, string(a.body))) {
		a.t.Errorf("%s: got %d %s, want %d %s", a.what, a.status, a.body, status, want)
	}
	return a
}

// refused wants the answer to be a problem.
func (a *answer) refused(status int, code, detail string) *answer {
	a.t.Helper()
	return a.is(status, mustJSON(a.t, map[string]any{
		"detail": detail, "type": "urn:oncemill:problem:" + code, "title": http.StatusText(status), "status": status, "code": code,
	}))
}

// invalid wants the answer to say what is wrong with a field, and with no other.
func (a *answer) invalid(where, field, says string) *answer {
	a.t.Helper()
	var problem struct {
		Detail []struct {
			Type, Msg string
			Loc       []any
		}
	}
	err := json.Unmarshal(a.body, &problem)
	ok := a.status == http.StatusUnprocessableEntity && err == nil && len(problem.Detail) > 0
	for _, d := range problem.Detail {
		ok = ok && d.Loc[0] == where && (field == "" && len(d.Loc) == 1 || field != "" && d.Loc[len(d.Loc)-1] == field)
	}
	if !ok || !strings.Contains(problem.Detail[0].Msg, says) {
		a.t.Errorf("%s: got %d %s, want 422 for %s in the %s that says %q", a.what, a.status, a.body, field, where, says)
	}
	return a
}

// items returns one field of each item of a list.
func (a *answer) items(field string) (values []any) {
	a.t.Helper()
	items, ok := a.fields()["items"].([]any)
	if a.status != http.StatusOK || !ok {
		a.t.Fatalf("%s: got %d %s, want a list", a.what, a.status, a.body)
	}
	for _, item := range items {
		values = append(values, item.(map[string]any)[field])
	}
	return values
}

// lists wants a list with these values of a field.
func (a *answer) lists(field string, want ...any) *answer {
	a.t.Helper()
	if got := a.items(field); mustJSON(a.t, got) != mustJSON(a.t, want) {
		a.t.Errorf("%s: lists %v, want %v", a.what, got, want)
	}
	return a
}

func jsonOf(t *testing.T, text string) (value any) {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader([]byte(text)))
	decoder.UseNumber()
	if err := decoder.Decode(&value); err != nil {
		t.Fatalf("%v: %.500s", err, text)
	}
	return value
}

func matches(want, got any) bool {
	switch want := want.(type) {
	case map[string]any:
		object, ok := got.(map[string]any)
		if !ok || len(object) != len(want) {
			return false
		}
		for name, value := range want {
			if one, ok := object[name]; !ok || !matches(value, one) {
				return false
			}
		}
		return true
	case []any:
		return slices.EqualFunc(want, sliceOf(got), matches)
	case string:
		return want == "*" || want == got
	}
	return reflect.DeepEqual(want, got)
}

func sliceOf(value any) []any {
	items, _ := value.([]any)
	return items
}

func (s *site) exec(statement string, args ...any) {
	s.t.Helper()
	_, err := s.db.ExecContext(within(s.t), statement, args...)
	noError(s.t, err)
}

// count returns a number from the database.
func (s *site) count(query string, args ...any) (n int) {
	s.t.Helper()
	noError(s.t, s.db.QueryRowContext(within(s.t), query, args...).Scan(&n))
	return n
}

// wantNothing wants that nothing was stored.
func (s *site) wantNothing(because string) {
	s.t.Helper()
	if n := s.count(`SELECT (SELECT count(*) FROM oncemill.claims) + (SELECT count(*) FROM oncemill.events)`); n != 0 {
		s.t.Fatalf("%.300s: %d rows were written", because, n)
	}
}

// expire ends the lease of a claim.
func (s *site) expire(id string) {
	s.t.Helper()
	s.exec(`UPDATE oncemill.claims SET lease_until = clock_timestamp() - interval '1 microsecond', effect_until = clock_timestamp() WHERE key = $1 AND settled_at IS NULL`, id)
}

// events returns the kinds of the events of an id, in their order.
func (s *site) events(id string) (kinds []string) {
	s.t.Helper()
	rows, err := s.db.QueryContext(within(s.t), `SELECT kind FROM oncemill.events WHERE key = $1 ORDER BY id`, id)
	noError(s.t, err)
	defer rows.Close()
	for rows.Next() {
		var kind string
		noError(s.t, rows.Scan(&kind))
		kinds = append(kinds, kind)
	}
	noError(s.t, rows.Err())
	return kinds
}

func (s *site) wantEvents(id string, want ...string) {
	s.t.Helper()
	if got := s.events(id); mustJSON(s.t, got) != mustJSON(s.t, want) {
		s.t.Errorf("events of %s: %q, want %q", id, got, want)
	}
}

// A recorder is who gets an answer without a connection.
type recorder struct {
	head http.Header
	code int
	text bytes.Buffer
}

func newRecorder() *recorder { return &recorder{head: make(http.Header), code: http.StatusOK} }

func (r *recorder) Header() http.Header                { return r.head }
func (r *recorder) WriteHeader(code int)               { r.code = code }
func (r *recorder) Write(text []byte) (n int, _ error) { return r.text.Write(text) }

// serverSide is a client's request as a server would read it.
func serverSide(r *http.Request) *http.Request {
	target, err := url.ParseRequestURI(r.URL.Opaque)
	if err != nil {
		panic(err)
	}
	r.URL = target
	if r.Body == nil {
		r.Body = http.NoBody
	}
	return r
}
