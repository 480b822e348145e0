package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// codes are those of the guard's errors that say more than their HTTP status.
var codes = map[string]error{
	"fenced": ErrFenced, "settled": ErrSettled, "failed": ErrFailed, "in_doubt": ErrInDoubt,
	"in_flight": ErrInFlight, "key_reused": ErrKeyReused,
}

// refused is the error of an answer that is not 200.
func (c *Client) refused(r *request, status int, header http.Header, body []byte) *Error {
	e := &Error{Op: r.op, ID: r.id, Status: status, RetryAfter: retryAfter(header)}
	var problem struct {
		Code   string
		Detail json.RawMessage
		Reason string
	}
	if json.Unmarshal(body, &problem) == nil {
		hide := c.hide(r.token)
		e.Code = line(hide.Replace(problem.Code), 50)
		e.Detail = line(hide.Replace(detail(problem.Detail)), mostDetail)
		e.Reason = problem.Reason
	}
	e.Err = codes[e.Code]
	if status != http.StatusConflict || e.Err == nil {
		e.Err = meaning(status)
	}
	if status/100 == 3 {
		e.Detail = "it wants the request sent elsewhere: set Client.URL to where the guard is"
	}
	return e
}

// meaning is what an HTTP status says. All that a proxy in front of the guard may have
// made up is unavailable.
func meaning(status int) error {
	switch {
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return ErrDenied
	case status == http.StatusNotFound:
		return ErrNotFound
	case status == http.StatusTooManyRequests:
		return ErrRateLimited
	case status == http.StatusRequestTimeout, status == http.StatusTooEarly, status >= 500, status < 300:
		return ErrUnavailable
	}
	return ErrInvalid
}

// detail makes a text of what a guard says of an error: a text, or a list of what is
// wrong with the fields of the body.
func detail(raw json.RawMessage) string {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return text
	}
	var fields []struct {
		Loc []json.RawMessage
		Msg string
	}
	if json.Unmarshal(raw, &fields) != nil {
		return ""
	}
	parts := make([]string, len(fields))
	for i, f := range fields {
		path := make([]string, len(f.Loc))
		for j, step := range f.Loc {
			path[j] = strings.Trim(string(step), `"`)
		}
		parts[i] = strings.Join(path, ".") + ": " + f.Msg
	}
	return strings.Join(parts, "; ")
}

// answer is what a guard says to a request that has to do with one id.
type answer struct {
	Status    string          `json:"status"`
	RequestID string          `json:"request_id"`
	Token     string          `json:"settlement_token"`
	Provider  string          `json:"provider_key"`
	Existing  json.RawMessage `json:"existing"`
	InDoubt   bool            `json:"in_doubt"`
	Failed    bool            `json:"failed"`
	Reason    string          `json:"reason"`
}

// into returns what takes an answer about an id that has one of some statuses.
func (a *answer) into(id string, statuses ...string) func(body []byte) error {
	return func(body []byte) error {
		*a = answer{}
		if err := json.Unmarshal(body, a); err != nil {
			return errors.New("it is not JSON of the right form") // the error would quote it
		}
		if a.RequestID != id {
			return errors.New("it is about another request_id")
		}
		for _, status := range statuses {
			if a.Status == status {
				return a.checkToken()
			}
		}
		return fmt.Errorf("its status is %q", line(a.Status, 50))
	}
}

func (a *answer) checkToken() error {
	if a.Status == proceed && (a.Token == "" || !fitForHeader(a.Token)) {
		return errors.New("it has no settlement_token")
	}
	return nil
}

func acceptSweep(body []byte) error {
	var report struct {
		Stale *int `json:"stale_pending"`
	}
	if json.Unmarshal(body, &report) != nil || report.Stale == nil {
		return errors.New("it has no stale_pending")
	}
	return nil
}

// shown is a JSON value that may be missing.
func shown(raw json.RawMessage) json.RawMessage {
	if string(raw) == "null" {
		return nil
	}
	return raw
}
