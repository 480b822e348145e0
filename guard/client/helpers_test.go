package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/oncemill/oncemill/guard/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	token  = "00000000000000070123456789abcdef0123456789abcdef0123456789abcdef"
	apiKey = "the-api-key-of-a-tenant"
)

// A seen request is one that a server got.
type seen struct {
	at     time.Time
	method string
	uri    string // as it was sent
	path   string // unescaped
	query  map[string][]string
	header http.Header
	body   map[string]any
	ctx    context.Context
}

// A script is a server that gives its answers in their order, and the last of them from
// then on. The guard's own behaviour is tested on the guard.
type script struct {
	mu      sync.Mutex
	got     []seen
	answers []answer
}

// An answer is what a server does with a request.
type answer func(w http.ResponseWriter, r seen)

func (s *script) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	text, _ := io.ReadAll(r.Body) // a short body is seen as one
	got := seen{at: time.Now(), method: r.Method, uri: r.RequestURI, path: r.URL.Path, query: r.URL.Query(), header: r.Header.Clone(), ctx: r.Context()}
	_ = json.Unmarshal(text, &got.body) // some have none
	s.mu.Lock()
	s.got = append(s.got, got)
	do := s.answers[min(len(s.got), len(s.answers))-1]
	s.mu.Unlock()
	do(w, got)
}

func (s *script) requests() []seen {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]seen(nil), s.got...)
}

// steps are the first steps of the paths that were asked for: what was done.
func (s *script) steps() string {
	var steps []string
	for _, r := range s.requests() {
		steps = append(steps, strings.Split(r.path, "/")[1])
	}
	return strings.Join(steps, " ")
}

// says answers with a status and a text.
func says(status int, text string) answer {
	return func(w http.ResponseWriter, _ seen) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, text)
	}
}

// ok answers 200 about order:7.
func ok(status string, more ...string) answer {
	return says(http.StatusOK, `{"status":"`+status+`","request_id":"order:7"`+strings.Join(more, "")+`}`)
}

// problem answers as the guard does where it refuses something.
func problem(status int, code, detail string) answer {
	text, _ := json.Marshal(map[string]any{"detail": detail, "type": "urn:oncemill:problem:" + code, "title": "no", "status": status, "code": code})
	return says(status, string(text))
}

func proceed() answer {
	return ok("PROCEED", `,"agent_id":null,"settlement_token":"`+token+`","lease_until":1.5`)
}

// lost closes the connection without an answer, after the request was read.
func lost(http.ResponseWriter, seen) { panic(http.ErrAbortHandler) }

// hangs until the client has gone.
func hangs(_ http.ResponseWriter, r seen) { <-r.ctx.Done() }

// serve starts a server that gives answers, and returns a client of it.
func serve(t *testing.T, answers ...answer) (*client.Client, *script) {
	t.Helper()
	s := &script{answers: answers}
	server := httptest.NewServer(s)
	transport := &http.Transport{}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		server.Close()
	})
	return &client.Client{URL: server.URL, APIKey: apiKey, HTTP: &http.Client{Transport: transport}}, s
}

// roundTrip is a transport without a network, for tests in which time is made up.
type roundTrip func(r *http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// imagine returns a client whose server answers after some time each.
func imagine(after time.Duration, answers ...answer) (*client.Client, *script) {
	s := &script{answers: answers}
	return &client.Client{URL: "http://guard", HTTP: &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		w := httptest.NewRecorder()
		select {
		case <-time.After(after):
			s.ServeHTTP(w, r)
			return w.Result(), nil
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	})}}, s
}

func order() client.Request { return client.Request{ID: "order:7", Action: "charge"} }

// claimed returns a claim of order:7, under a client that then gets the answers.
func claimed(t *testing.T, answers ...answer) (*client.Claim, *script) {
	t.Helper()
	c, s := serve(t, append([]answer{proceed()}, answers...)...)
	claim, err := c.Claim(t.Context(), order())
	must(t, err)
	return claim, s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, err, target error) *client.Error {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("got error %v, want %v", err, target)
	}
	var e *client.Error
	if !errors.As(err, &e) {
		t.Fatalf("got error %v, want an *Error", err)
	}
	return e
}

func wantText(t *testing.T, err error, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("got error %v, want one that says %q", err, part)
		}
	}
}

func wantSteps(t *testing.T, s *script, steps string) {
	t.Helper()
	if got := s.steps(); got != steps {
		t.Fatalf("the server was asked to %s, want %s", got, steps)
	}
}
