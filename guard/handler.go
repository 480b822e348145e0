package guard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/oncemill/oncemill"
)

// A Handler answers HTTP requests for claims. Set the fields, call Check, mount it in any
// server, and have Run running beside it. Any number of them may work on one database;
// they share nothing else.
//
// Mount it at the root, or behind http.StripPrefix.
type Handler struct {
	// Inbox holds the claims. Required. Set its ClaimBatch (64), its DrainTimeout to
	// less than a caller waits (5 seconds), its Retention to how long a request id shall
	// be known (a claim that is purged can be made again), and its DB's MaxOpenConns. Open
	// the DB with oncemill.PlanByIndex.
	Inbox *oncemill.Inbox

	// Tenants are whose API keys are accepted. nil: a request needs none, which is for
	// loopback and for behind something that authenticates.
	Tenants *Tenants

	// AuditToken is the operator's: who has it reads all tenants' claims and events, and
	// resolves what is in doubt. At least 32 characters. "": nobody does.
	AuditToken string

	// Legacy serves clients from before settlement tokens: claims are settled without
	// one, and claims and results are open to read. Needs trust in every caller.
	Legacy bool

	// LocalOnly refuses requests whose Host is neither localhost nor an IP address. Set it
	// where no API key is needed and only this machine is meant to reach the Handler: a page
	// in a browser there, whose name its owner has point to 127.0.0.1, would otherwise claim,
	// or read, as at what it takes for its own server.
	LocalOnly bool

	// Lease is how long a claim may stay unsettled before it is in doubt, unless its
	// caller says otherwise. 0 means 5 minutes.
	Lease time.Duration

	// Timeout bounds the work for one request, but for an export. 0 means 10 seconds.
	Timeout time.Duration

	// TestCalls is how many calls of /claim/test an address, or a tenant, has in an
	// hour. 0 means 1,000.
	TestCalls int

	// Logger gets what cannot be told to a caller. nil means slog.Default().
	Logger *slog.Logger

	start  sync.Once
	ready  readiness
	tests  testCalls
	secret secret

	complaints complaints
}

const (
	defaultLease     = 5 * time.Minute
	defaultTimeout   = 10 * time.Second
	defaultTestCalls = 1000

	// leastToken is how long the audit token has to be, in bytes.
	leastToken = 32
)

// name is the consumer of claims without a tenant.
const name = "guard"

// Check reports whether the Handler can work: its fields are valid, the tenants' file can
// be read, and the database answers, takes writes and has the right schema. It makes the
// key with which settlement tokens are signed, if there is none yet. Call it when the
// program starts.
func (h *Handler) Check(ctx context.Context) error {
	if err := h.validate(); err != nil {
		return err
	}
	h.start.Do(h.setUp)
	if h.Tenants != nil {
		if err := h.Tenants.Check(); err != nil {
			return err
		}
	}
	if err := h.Inbox.Check(ctx); err != nil {
		return err
	}
	return h.secret.load(ctx, h.Inbox)
}

func (h *Handler) validate() error {
	switch {
	case h.Inbox == nil:
		return errors.New("guard: Handler.Inbox is nil: set it to the Inbox that holds the claims")
	case h.AuditToken != "" && len(h.AuditToken) < leastToken:
		return fmt.Errorf("guard: Handler.AuditToken has %d characters: give at least %d random ones, or none", len(h.AuditToken), leastToken)
	case h.Timeout < 0 || h.TestCalls < 0:
		return errors.New("guard: Handler.Timeout and Handler.TestCalls must not be negative")
	}
	if _, err := h.Inbox.EffectTime(h.Lease); err != nil {
		return fmt.Errorf("guard: Handler.Lease: %w", err)
	}
	return nil
}

// setUp fills in defaults, once. What it finds wrong is a programmer's mistake.
func (h *Handler) setUp() {
	if err := h.validate(); err != nil {
		panic(err.Error())
	}
	if h.Lease == 0 {
		h.Lease = defaultLease
	}
	if h.Timeout == 0 {
		h.Timeout = defaultTimeout
	}
	if h.TestCalls == 0 {
		h.TestCalls = defaultTestCalls
	}
	if h.Logger == nil {
		h.Logger = slog.Default()
	}
}

// A call is one request on its way through the Handler.
type call struct {
	h *Handler
	w http.ResponseWriter
	r *http.Request
	access
}

// An endpoint is one path, or what comes before an id in it.
type endpoint struct {
	path    string
	method  string
	withID  bool
	claims  bool // as a tenant, where there are any
	serve   func(c *call, id ids) error
	noLimit bool // of time
}

var endpoints = []endpoint{
	{path: "/claim", method: http.MethodPost, claims: true, serve: (*call).claim},
	{path: "/claim/test", method: http.MethodPost, claims: true, serve: (*call).claimTest},
	{path: "/settle/", method: http.MethodPost, withID: true, claims: true, serve: (*call).settle},
	{path: "/release/", method: http.MethodPost, withID: true, claims: true, serve: (*call).release},
	{path: "/fail/", method: http.MethodPost, withID: true, claims: true, serve: (*call).fail},
	{path: "/extend/", method: http.MethodPost, withID: true, claims: true, serve: (*call).extend},
	{path: "/resolve/", method: http.MethodPost, withID: true, serve: (*call).resolve},
	{path: "/sweep", method: http.MethodPost, serve: (*call).sweep},
	{path: "/audit", method: http.MethodGet, serve: (*call).audit},
	{path: "/events", method: http.MethodGet, serve: (*call).events, noLimit: true},
	{path: "/summary", method: http.MethodGet, serve: (*call).summary},
	{path: "/health", method: http.MethodGet, serve: (*call).health},
	{path: "/readyz", method: http.MethodGet, serve: (*call).readyz},
	{path: "/openapi.json", method: http.MethodGet, serve: (*call).openAPI},
}

// ServeHTTP answers one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.start.Do(h.setUp)
	header := w.Header()
	header.Set("Content-Type", "application/json")
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	c := &call{h: h, w: w, r: r}
	if err := c.route(); err != nil {
		c.refuse(err)
	}
}

// route finds the endpoint by hand: http.ServeMux would clean the path, and an id may
// have two slashes in a row.
func (c *call) route() error {
	raw := c.r.URL.EscapedPath()
	for _, e := range endpoints {
		var id ids
		if e.withID {
			rest, ok := strings.CutPrefix(raw, e.path)
			if !ok || rest == "" {
				continue
			}
			id = idsOf(rest, c.r.URL)
		} else if raw != e.path {
			continue
		}
		if c.r.Method != e.method {
			c.w.Header().Set("Allow", e.method)
			return problem{status: http.StatusMethodNotAllowed, code: "method_not_allowed", detail: "Method Not Allowed"}
		}
		return c.run(e, id)
	}
	return problem{status: http.StatusNotFound, code: "not_found", detail: "Not Found"}
}

func (c *call) run(e endpoint, id ids) error {
	if !e.noLimit {
		ctx, cancel := context.WithTimeout(c.r.Context(), c.h.Timeout)
		defer cancel()
		c.r = c.r.WithContext(ctx)
	}
	if err := c.identify(); err != nil {
		return err
	}
	if e.claims {
		if err := c.mayClaim(); err != nil {
			return err
		}
	}
	return e.serve(c, id)
}
