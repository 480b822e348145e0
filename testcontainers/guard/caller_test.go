package guard_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// A caller speaks to guards, as a program in any language does.
type caller struct {
	http    *http.Client
	guards  []string // URLs, of which it asks the first that answers
	headers map[string]string
}

// A reply is what a guard answers, of whatever kind.
type reply struct {
	code   int
	header http.Header
	raw    []byte

	Status     string          `json:"-"`
	RequestID  string          `json:"request_id"`
	AgentID    *string         `json:"agent_id"`
	Token      string          `json:"settlement_token"`
	LeaseUntil float64         `json:"lease_until"`
	Existing   json.RawMessage `json:"existing"`
	Failed     bool            `json:"failed"`
	InDoubt    bool            `json:"in_doubt"`
	Reason     string          `json:"reason"`
	Detail     json.RawMessage `json:"detail"`
	Code       string          `json:"code"`
}

func (r reply) String() string { return fmt.Sprintf("%d %s", r.code, bytes.TrimSpace(r.raw)) }

// fence is the fencing token in a settlement token.
func (r reply) fence() int64 {
	if len(r.Token) != 64 {
		return 0
	}
	n, err := strconv.ParseInt(r.Token[:16], 16, 64)
	if err != nil {
		return 0
	}
	return n
}

// object is a JSON object.
type object map[string]any

// newCaller returns a caller with connections of its own. Close them.
func newCaller(timeout time.Duration, guards ...string) *caller {
	return &caller{http: &http.Client{Timeout: timeout, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}, guards: guards, headers: map[string]string{}}
}

func (c *caller) close() { c.http.CloseIdleConnections() }

// with returns a caller with another header.
func (c *caller) with(header, value string) *caller {
	other := *c
	other.headers = map[string]string{header: value}
	for name, value := range c.headers {
		if name != header {
			other.headers[name] = value
		}
	}
	return &other
}

// at returns a caller of one guard.
func (c *caller) at(guard string) *caller {
	other := *c
	other.guards = []string{guard}
	return &other
}

// once sends one request to one guard.
func (c *caller) once(ctx context.Context, guard, method, path, token string, body []byte) (r reply, err error) {
	request, err := http.NewRequestWithContext(ctx, method, guard+path, bytes.NewReader(body))
	if err != nil {
		return r, err
	}
	for name, value := range c.headers {
		request.Header.Set(name, value)
	}
	if token != "" {
		request.Header.Set("X-SafeAgent-Settlement-Token", token)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return r, err
	}
	defer response.Body.Close()
	if r.raw, err = io.ReadAll(response.Body); err != nil {
		return r, err
	}
	r.code, r.header = response.StatusCode, response.Header
	err = json.Unmarshal(r.raw, &r)
	var status struct {
		Status any `json:"status"` // in a problem it is a number
	}
	_ = json.Unmarshal(r.raw, &status)
	r.Status, _ = status.Status.(string)
	return r, err
}

// do sends a request to one guard after the other, again and again, until it has an answer
// that is not 503. It gives up after the time for which a guard knows a nonce.
func (c *caller) do(ctx context.Context, first int, method, path, token string, body []byte) (r reply, err error) {
	for end, try := time.Now().Add(25*time.Second), first; ; try++ {
		r, err = c.once(ctx, c.guards[try%len(c.guards)], method, path, token, body)
		if err == nil && r.code != http.StatusServiceUnavailable {
			return r, nil
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return r, fmt.Errorf("no answer from any guard: %s, %w", r, err)
		}
		time.Sleep(10 * time.Millisecond) // a guard that is away is asked again
	}
}

func encode(body object) []byte {
	text, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	return text
}

// nonce returns what identifies one call.
func nonce() string { return rand.Text() }

// claim claims an id, with what else the body has.
func (c *caller) claim(ctx context.Context, id string, more object) (reply, error) {
	body := object{"request_id": id, "action": "order"}
	for name, value := range more {
		body[name] = value
	}
	return c.do(ctx, 0, http.MethodPost, "/claim", "", encode(body))
}

// end ends a claim: what is settle, release, fail or extend.
func (c *caller) end(ctx context.Context, what, id, token string, body object) (reply, error) {
	return c.do(ctx, 0, http.MethodPost, "/"+what+"/"+url.PathEscape(id), token, encode(body))
}

// get reads a list.
func (c *caller) get(ctx context.Context, path string, into any) error {
	r, err := c.do(ctx, 0, http.MethodGet, path, "", nil)
	if err != nil {
		return err
	}
	if r.code != http.StatusOK {
		return fmt.Errorf("%s: %s", path, r)
	}
	return json.Unmarshal(r.raw, into)
}

// A listed claim or event, as /audit and /events have it.
type listed struct {
	RequestID   string          `json:"request_id"`
	Action      string          `json:"action"`
	Status      string          `json:"status"`
	InDoubt     bool            `json:"in_doubt"`
	Reason      *string         `json:"reason"`
	Attempt     int64           `json:"attempt"`
	Tenant      *string         `json:"tenant"`
	Result      json.RawMessage `json:"result"`
	ClaimedAt   float64         `json:"claimed_at"`
	CommittedAt *float64        `json:"committed_at"`
	ID          int64           `json:"id"`
	At          float64         `json:"at"`
	Kind        string          `json:"kind"`
	AgentID     *string         `json:"agent_id"`
	Actor       *string         `json:"actor"`
	Note        *string         `json:"note"`
	Amount      *string         `json:"amount"`
}

// list reads all pages of a list.
func (c *caller) list(ctx context.Context, path string) (all []listed, err error) {
	for cursor := ""; ; {
		var page struct {
			Items      []listed `json:"items"`
			NextCursor *string  `json:"next_cursor"`
		}
		if err := c.get(ctx, path+cursor, &page); err != nil {
			return nil, err
		}
		all = append(all, page.Items...)
		if page.NextCursor == nil {
			return all, nil
		}
		cursor = "&cursor=" + url.QueryEscape(*page.NextCursor)
	}
}

func queryEscape(id string) string { return url.QueryEscape(id) }
