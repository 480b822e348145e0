package guard

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/dbcheck"
)

// A problem is an error of a caller, or one that a caller is told about. Its body is
// that of RFC 9457, but that detail is a list where SafeAgent's is one.
type problem struct {
	status     int
	code       string
	detail     string
	fields     []fieldError // instead of detail
	outcome    oncemill.Outcome
	retryAfter int // seconds
	log        error
}

// A fieldError says what is wrong with one field, in the shape that FastAPI gives it.
type fieldError struct {
	Type string `json:"type"`
	Loc  []any  `json:"loc"`
	Msg  string `json:"msg"`
}

func (p problem) Error() string {
	if len(p.fields) > 0 {
		return p.fields[0].Msg
	}
	return p.detail
}

func bodyField(name string) []any { return []any{"body", name} }

// invalid is a field that cannot be used.
func invalid(loc []any, kind, msg string) problem {
	return invalidFields([]fieldError{{Type: kind, Loc: loc, Msg: msg}})
}

func invalidFields(fields []fieldError) problem {
	return problem{status: http.StatusUnprocessableEntity, code: "invalid", fields: fields}
}

// problemBody is a problem as it is sent.
type problemBody struct {
	Detail  any    `json:"detail"`
	Type    string `json:"type"`
	Title   string `json:"title"`
	Status  int    `json:"status"`
	Code    string `json:"code"`
	Outcome string `json:"outcome,omitempty"`
}

// refuse answers a request that cannot be done.
func (c *call) refuse(err error) {
	p := c.asProblem(err)
	if p.log != nil {
		c.h.complaints.log(c, p)
	}
	if p.retryAfter > 0 {
		c.w.Header().Set("Retry-After", strconv.Itoa(p.retryAfter))
	}
	body := problemBody{
		Detail: p.detail, Type: "urn:oncemill:problem:" + p.code, Title: http.StatusText(p.status), Status: p.status,
		Code: p.code, Outcome: string(p.outcome),
	}
	if len(p.fields) > 0 {
		body.Detail = p.fields
	}
	c.write(p.status, body)
}

func (c *call) asProblem(err error) problem {
	var p problem
	if errors.As(err, &p) {
		return p
	}
	return c.problemOf(err)
}

// complaints are what the log gets of requests that could not be answered: while the
// database is away, all of them fail in the same way.
type complaints struct {
	mu     sync.Mutex
	next   time.Time
	unsaid int
}

const complainEvery = 10 * time.Second

func (l *complaints) log(c *call, p problem) {
	l.mu.Lock()
	defer l.mu.Unlock()
	level := slog.LevelError
	if now := time.Now(); now.Before(l.next) {
		level = slog.LevelDebug
		l.unsaid++
	} else {
		l.next = now.Add(complainEvery)
	}
	c.h.Logger.Log(c.r.Context(), level, "guard: a request could not be answered",
		"path", c.r.URL.Path, "status", p.status, "error", p.log, "unsaid_before", l.unsaid)
	if level == slog.LevelError {
		l.unsaid = 0
	}
}

// problemOf says what a caller is told of an error of the claims core. It never names the
// database: who is told may be anybody.
func (c *call) problemOf(err error) problem {
	var held *oncemill.Held
	var e *oncemill.Error
	if errors.As(err, &e) {
		held = e.Held
	}
	switch {
	case errors.Is(err, oncemill.ErrKeyReused):
		return problem{status: http.StatusConflict, code: "key_reused", detail: "request_id was claimed with another fingerprint or payload: give each effect an id of its own"}
	case errors.Is(err, oncemill.ErrFenced) && held == nil:
		return notFound
	case errors.Is(err, oncemill.ErrFenced):
		return problem{status: http.StatusConflict, code: "fenced", detail: "the claim is no longer yours: it was resolved, or released and claimed again", outcome: held.Outcome}
	case errors.Is(err, oncemill.ErrSettled) && held != nil:
		return problem{status: http.StatusConflict, code: string(held.Outcome), detail: "the claim has ended as " + string(held.Outcome), outcome: held.Outcome}
	case errors.Is(err, oncemill.ErrInDoubt):
		return problem{status: http.StatusConflict, code: "in_doubt", detail: "the claim is in doubt: its lease was over"}
	case errors.Is(err, oncemill.ErrInFlight):
		return problem{status: http.StatusConflict, code: "in_flight", detail: "the claim is in flight: its lease is not over"}
	case errors.Is(err, oncemill.ErrResultTooLarge):
		return problem{status: http.StatusRequestEntityTooLarge, code: "too_large", detail: tooLargeResult}
	}
	return unavailable(err)
}

var notFound = problem{status: http.StatusNotFound, code: "not_found", detail: "request_id not found"}

// unavailable is whatever keeps the Handler from its work: then nobody may proceed.
func unavailable(err error) problem {
	p := problem{status: http.StatusServiceUnavailable, code: "unavailable", retryAfter: 1, log: err}
	switch {
	case isReadOnly(err):
		p.detail = "the database takes no writes at the moment"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, oncemill.ErrDrained):
		p.detail = "the database did not answer in time"
	case errors.Is(err, context.Canceled):
		p.detail, p.log = "the request was cancelled", nil
	default:
		p.detail = "the database is not available at the moment"
	}
	return p
}

func isReadOnly(err error) bool {
	state := dbcheck.SQLState(err)
	return errors.Is(err, oncemill.ErrReadOnly) || state == "25006" || state == "0A000" // a replica refuses BEGIN READ WRITE
}

// write answers with JSON. What cannot be sent any more, nobody waits for.
func (c *call) write(status int, body any) {
	text, err := json.Marshal(body)
	if err != nil {
		c.h.Logger.ErrorContext(c.r.Context(), "guard: an answer could not be written", "path", c.r.URL.Path, "error", err)
		status, text = http.StatusServiceUnavailable, []byte(`{"detail":"the answer could not be written"}`)
	}
	c.w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	c.w.WriteHeader(status)
	_, _ = c.w.Write(text)
}
