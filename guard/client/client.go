package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// What holds where a field of a Client or of a Request says nothing.
const (
	DefaultTimeout  = 10 * time.Second
	DefaultPatience = 30 * time.Second
	DefaultLease    = 5 * time.Minute
)

// A Client speaks to one guard. It may be used by several goroutines at a time; its
// fields must not change meanwhile.
type Client struct {
	// URL is the guard's, such as "https://guard.example.com" or
	// "http://127.0.0.1:8080/guard", where a proxy has it under a path. Required.
	URL string

	// APIKey is the tenant's. "": the guard has no tenants.
	APIKey string

	// AuditToken is the operator's. With it Audit and Events show all tenants, and where
	// there are none, it has Do and ErrSettled show what a claim was settled with. "":
	// what is shown is what the APIKey may see.
	AuditToken string

	// HTTP sends the requests. nil: http.DefaultClient, which keeps two idle
	// connections; where more than two callers claim at a time, give it a Transport
	// with a larger MaxIdleConnsPerHost. Redirects are not followed.
	HTTP *http.Client

	// Timeout is for how long one try waits for an answer. 0: DefaultTimeout.
	Timeout time.Duration

	// Patience is for how long a request is repeated that gets no answer, or one that
	// asks for that: 503, 429. A claim is not repeated after 30 seconds, however
	// patient. 0: DefaultPatience.
	Patience time.Duration
}

// Check looks at the fields, and asks the guard whether it is there and knows APIKey and
// AuditToken. It tries once. Errors are an *Error that names what to mend, with
// ErrInvalid, ErrDenied, ErrNotFound or ErrUnavailable.
func (c *Client) Check(ctx context.Context) error {
	if err := c.check(); err != nil {
		return failed(OpCheck, "", fmt.Errorf("%w: %w", ErrInvalid, err))
	}
	asks := []request{{op: OpCheck, method: http.MethodPost, path: "/sweep", accept: acceptSweep}}
	if c.AuditToken != "" {
		asks = append(asks, request{op: OpCheck, method: http.MethodGet, path: "/audit?limit=1", audit: true, accept: acceptPage})
	}
	for _, r := range asks {
		if err := c.try(ctx, &r); err != nil {
			err.Detail = strings.TrimSpace(remedy(&r, err) + " " + err.Detail)
			return err
		}
	}
	return nil
}

// remedy says what to mend after a Check.
func remedy(r *request, err error) string {
	switch {
	case errors.Is(err, ErrNotFound):
		return "Client.URL is not that of a guard; is its path right?"
	case errors.Is(err, ErrDenied) && r.audit:
		return "Client.AuditToken is not the guard's:"
	case errors.Is(err, ErrDenied):
		return "Client.APIKey is not that of a tenant of this guard:"
	case errors.Is(err, ErrUnavailable):
		return "does a guard listen at Client.URL?"
	}
	return ""
}

// check tells which field is wrong.
func (c *Client) check() error {
	u, err := url.Parse(c.URL)
	switch {
	case err != nil: // whose text has all of it
		return errors.New("Client.URL is not a URL: it must be http:// or https://, a host, and perhaps a path")
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "":
		return errors.New("Client.URL must begin with http:// or https:// and a host")
	case u.User != nil, u.RawQuery != "", u.Fragment != "":
		return errors.New("Client.URL must have no user, query or fragment")
	case c.Timeout < 0:
		return fmt.Errorf("Client.Timeout is %v: must not be negative", c.Timeout)
	case c.Patience < 0:
		return fmt.Errorf("Client.Patience is %v: must not be negative", c.Patience)
	case !fitForHeader(c.APIKey):
		return errors.New("Client.APIKey has characters in it that no header can have: is there a line break at its end?")
	case !fitForHeader(c.AuditToken):
		return errors.New("Client.AuditToken has characters in it that no header can have: is there a line break at its end?")
	}
	return nil
}

func fitForHeader(secret string) bool {
	return !strings.ContainsFunc(secret, func(r rune) bool { return r <= ' ' || r > '~' })
}

func (c *Client) timeout() time.Duration  { return orDefault(c.Timeout, DefaultTimeout) }
func (c *Client) patience() time.Duration { return orDefault(c.Patience, DefaultPatience) }

func orDefault(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

// httpClient returns a client that follows no redirect.
func (c *Client) httpClient() *http.Client {
	h := c.HTTP
	if h == nil {
		h = http.DefaultClient
	}
	staying := *h
	staying.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &staying
}

// pathOf is the path of what is done to an id. Escaped, an id that is "." or ".." stays
// one; a client would take it for a step up.
func pathOf(step, id string) string {
	escaped := url.PathEscape(id)
	if id == "." || id == ".." {
		escaped = strings.ReplaceAll(id, ".", "%2E")
	}
	return "/" + step + "/" + escaped
}
