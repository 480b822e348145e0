package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	// The pauses between tries double from the first to the longest. Each is cut by up
	// to half at random, so that callers who were refused together do not come back
	// together.
	firstPause = 50 * time.Millisecond
	mostPause  = 2 * time.Second

	// mostAnswer is how many bytes of an answer are read: more than a page of the audit
	// has.
	mostAnswer = 256 << 20
)

// A request is sent once or several times.
type request struct {
	op     Op
	id     string
	method string
	path   string // below Client.URL, escaped, with its query
	token  string // of the claim; "": none
	audit  bool   // it reads what an AuditToken shows more of
	body   []byte
	accept func(body []byte) error // takes an answer, or says why it is not a guard's
	sent   time.Time               // when the latest try began; zero: nothing was sent
}

// repeat sends a request until there is an answer that another try would not change, but
// not after until, nor when ctx has ended.
func (c *Client) repeat(ctx context.Context, r *request, until time.Time) *Error {
	within, stop := context.WithDeadlineCause(ctx, until, errPatience)
	defer stop()
	var last *Error
	for pause := firstPause; ; pause = min(2*pause, mostPause) {
		err := c.try(within, r)
		if err == nil || !err.again() {
			return err
		}
		if last == nil || within.Err() == nil { // or it says no more than that the time is over
			last = err
		}
		if !wait(within, max(pause-rand.N(pause/2), last.RetryAfter+rand.N(pause/2))) {
			break
		}
	}
	if err := ctx.Err(); err != nil && !errors.Is(last, err) {
		last.Err = fmt.Errorf("%w: %w", last.Err, err)
	}
	return last
}

// errPatience is why a try ends that goes on for as long as requests are repeated.
var errPatience = errors.New("no answer in time")

// again tells whether another try may have another answer.
func (e *Error) again() bool { return errors.Is(e, ErrUnavailable) || errors.Is(e, ErrRateLimited) }

// wait returns false if ctx has ended, or would before the pause is over.
func wait(ctx context.Context, pause time.Duration) bool {
	if end, ok := ctx.Deadline(); ok && time.Until(end) <= pause {
		return false
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// try sends a request once. An answer that is not 200, or not a guard's, is an error,
// and so is none.
func (c *Client) try(ctx context.Context, r *request) *Error {
	if ctx.Err() != nil {
		return c.unanswered(r, context.Cause(ctx))
	}
	within, stop := context.WithTimeoutCause(ctx, c.timeout(), fmt.Errorf("no answer within %v", c.timeout()))
	defer stop()
	r.sent = time.Now()
	status, header, body, err := c.exchange(within, r)
	switch {
	case err != nil && within.Err() != nil:
		return c.unanswered(r, context.Cause(within))
	case err != nil:
		return c.unanswered(r, err)
	case status != http.StatusOK:
		return c.refused(r, status, header, body)
	}
	if err := r.accept(body); err != nil {
		e := c.unanswered(r, fmt.Errorf("the answer is not a guard's: %w", err))
		e.Status = status
		return e
	}
	return nil
}

func (c *Client) exchange(ctx context.Context, r *request) (status int, header http.Header, body []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, r.method, strings.TrimRight(c.URL, "/")+r.path, bytes.NewReader(r.body))
	if err != nil {
		return 0, nil, nil, err
	}
	if r.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	switch {
	case c.AuditToken != "" && (r.audit || c.APIKey == ""):
		req.Header.Set("X-SafeAgent-Audit-Token", c.AuditToken)
	case c.APIKey != "":
		req.Header.Set("X-SafeAgent-Api-Key", c.APIKey)
	}
	if r.token != "" {
		req.Header.Set("X-SafeAgent-Settlement-Token", r.token)
	}
	resp, err := c.httpClient().Do(req)
	if err != nil {
		var full *url.Error // with the whole URL in its text
		if errors.As(err, &full) {
			err = full.Err
		}
		return 0, nil, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, mostAnswer))
	return resp.StatusCode, resp.Header, body, err
}

// unanswered is the error of a try that has no answer that could be understood.
func (c *Client) unanswered(r *request, err error) *Error {
	return failed(r.op, r.id, fmt.Errorf("%w: %w", ErrUnavailable, hiddenError{err, c.hide(r.token)}))
}

// retryAfter is how long the guard wants to be left alone.
func retryAfter(header http.Header) time.Duration {
	seconds, err := strconv.ParseUint(header.Get("Retry-After"), 10, 31)
	if err != nil {
		return 0
	}
	return time.Duration(seconds) * time.Second
}
