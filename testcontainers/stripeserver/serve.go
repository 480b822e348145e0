package stripeserver

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// answer is a response as it is sent, and stored with a key.
type answer struct {
	status int
	body   []byte // JSON
}

// ServeHTTP is Stripe: first what stands before the idempotency layer, then the layer,
// then what it protects.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		return
	}
	call := Call{Method: r.Method, Path: r.URL.Path, Key: r.Header.Get("Idempotency-Key")}
	call.Params, err = params(r, body)
	call, fault := s.note(call)
	w.Header().Set("Request-Id", "req_"+strings.TrimPrefix(s.url, "http://")+"_"+call.Key)
	if slices.Contains(before, fault) {
		s.refuse(w, r, fault)
		return
	}
	if got := r.Header.Get("Authorization"); got != "Bearer "+s.options.APIKey {
		send(w, failure(http.StatusUnauthorized, apiError{Type: "invalid_request_error",
			Message: "Invalid API Key provided: " + strings.TrimPrefix(got, "Bearer ")}), false)
		return
	}
	if err != nil {
		send(w, invalid("", "", "The request cannot be read: %v", err), false)
		return
	}
	a, replayed := s.handle(r, call, fault)
	s.reply(w, r, fault, a, replayed)
}

// params returns the parameters of a request, each of which may occur once.
func params(r *http.Request, body []byte) (url.Values, error) {
	if r.Method != http.MethodPost {
		return url.ParseQuery(r.URL.RawQuery)
	}
	return url.ParseQuery(string(body))
}

func (s *Server) handle(r *http.Request, call Call, fault Fault) (a answer, replayed bool) {
	e := endpointOf(call.Method, call.Path)
	if e == nil {
		return failure(http.StatusNotFound, apiError{Type: "invalid_request_error",
			Message: "Unrecognized request URL (" + call.Method + ": " + call.Path + ")."}), false
	}
	if problem := e.check(call.Params); problem != nil {
		return *problem, false
	}
	if call.Method != http.MethodPost {
		s.mu.Lock()
		defer s.mu.Unlock()
		return e.run(s, call, None), false
	}
	if kind := r.Header.Get("Content-Type"); kind != "application/x-www-form-urlencoded" {
		return invalid("", "", "The content type is %q, not a form.", kind), false
	}
	return s.idempotently(call, fault, e)
}

// refuse is what happens before a request gets anywhere.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, fault Fault) {
	switch fault {
	case CutBefore:
		cut(w)
	case HangBefore:
		s.hang(r)
	case RateLimit:
		send(w, failure(http.StatusTooManyRequests, apiError{Type: "invalid_request_error", Code: "rate_limit",
			Message: "Too many requests hit the API too quickly."}), false)
	case LockTimeout:
		send(w, failure(http.StatusTooManyRequests, apiError{Type: "invalid_request_error", Code: "lock_timeout",
			Message: "This object cannot be accessed right now because another API request or Stripe process is currently accessing it."}), false)
	case Forbidden:
		send(w, failure(http.StatusForbidden, apiError{Type: "invalid_request_error",
			Message: "The provided key does not have the required permissions for this endpoint."}), false)
	case Conflict:
		send(w, inUse(), false)
	case Unavailable:
		htmlPage(w, http.StatusServiceUnavailable)
	}
}

// reply sends an answer, unless something goes wrong with that.
func (s *Server) reply(w http.ResponseWriter, r *http.Request, fault Fault, a answer, replayed bool) {
	switch fault {
	case CutAfter:
		cut(w)
	case HangAfter:
		s.hang(r)
	case Gateway:
		htmlPage(w, http.StatusBadGateway)
	case Garbled:
		a.body = a.body[:len(a.body)/2]
		send(w, a, replayed)
	case SlowAfter:
		s.wait(r.Context().Done())
		send(w, a, replayed)
	default:
		send(w, a, replayed)
	}
}

func send(w http.ResponseWriter, a answer, replayed bool) {
	w.Header().Set("Content-Type", "application/json")
	if replayed {
		w.Header().Set("Idempotent-Replayed", "true")
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body) // a client that has gone does not want to know
}

// htmlPage is the answer of a load balancer.
func htmlPage(w http.ResponseWriter, status int) {
	w.Header().Set("Content-Type", "text/html")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, "<html><title>"+http.StatusText(status)+"</title></html>\n")
}

// cut breaks the connection.
func cut(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err == nil {
		_ = conn.Close()
	}
}

// hang waits until the client has gone or the server ends.
func (s *Server) hang(r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-s.closing:
	}
}

// wait waits for Options.Delay, or until the client has gone or the server ends.
func (s *Server) wait(gone <-chan struct{}) {
	timer := time.NewTimer(s.options.Delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-gone:
	case <-s.closing:
	}
}

func success(object any) answer {
	var b bytes.Buffer
	if err := json.NewEncoder(&b).Encode(object); err != nil {
		return failure(http.StatusInternalServerError, apiError{Type: "api_error", Message: err.Error()})
	}
	return answer{http.StatusOK, b.Bytes()}
}
