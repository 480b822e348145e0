package guard

import (
	"crypto/subtle"
	"fmt"
	"math"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	apiKeyHeader = "X-SafeAgent-Api-Key"
	tokenHeader  = "X-SafeAgent-Settlement-Token"
	auditHeader  = "X-SafeAgent-Audit-Token"
)

// access is what a request may do.
type access struct {
	tenant   string // "": none was named, or there are none
	known    bool   // the request comes from a tenant
	operator bool   // of the tenant, or with audits of all
	audits   bool   // it has the audit token
	actor    string // who the events say has done it; "": this process
}

// identify reads who a request comes from. What it may do is for the endpoint to look at.
func (c *call) identify() error {
	for _, header := range []string{apiKeyHeader, tokenHeader, auditHeader} {
		if len(c.r.Header.Values(header)) > 1 {
			return problem{status: http.StatusBadRequest, code: "duplicate_header", detail: "header " + header + " is there more than once: send one"}
		}
	}
	if token := c.r.Header.Get(auditHeader); token != "" && c.h.AuditToken != "" &&
		subtle.ConstantTimeCompare([]byte(token), []byte(c.h.AuditToken)) == 1 {
		c.audits, c.operator, c.actor = true, true, "operator"
	}
	if c.h.Tenants == nil {
		return c.notFromElsewhere()
	}
	if tenant, ok := c.h.Tenants.Find(c.r.Header.Get(apiKeyHeader)); ok {
		c.known, c.tenant, c.operator, c.actor = true, tenant.Name, c.operator || tenant.Operator, "key "+tenant.KeyID
	}
	if !c.known {
		return nil
	}
	if ok, retryAfter := c.h.Tenants.Allow(c.tenant); !ok {
		return limited(retryAfter)
	}
	return nil
}

// notFromElsewhere refuses what a page of another origin has a browser send. Where no API
// key is needed, any page that somebody on this machine looks at could claim.
func (c *call) notFromElsewhere() error {
	if new(http.CrossOriginProtection).Check(c.r) != nil {
		return problem{status: http.StatusForbidden, code: "cross_origin", detail: "a browser sends this for a page of another origin"}
	}
	host := c.r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if c.h.LocalOnly && host != "localhost" && net.ParseIP(strings.Trim(host, "[]")) == nil {
		return problem{status: http.StatusForbidden, code: "host", detail: "the header Host has another name than localhost or an IP address: without tenants only this machine is served (have a proxy set Host)"}
	}
	return nil
}

func limited(retryAfter time.Duration) problem {
	seconds := max(1, int(math.Ceil(retryAfter.Seconds())))
	return problem{
		status: http.StatusTooManyRequests, code: "rate_limited", retryAfter: seconds,
		detail: "too many requests: try again in " + strconv.Itoa(seconds) + " s",
	}
}

var errAPIKey = problem{status: http.StatusForbidden, code: "api_key", detail: "tenant API key required"}

var errAudit = problem{status: http.StatusForbidden, code: "audit_token", detail: "audit access required"}

var errSettlementToken = problem{status: http.StatusForbidden, code: "settlement_token", detail: "settlement capability required"}

// mayClaim reports whether the request may claim and settle, as its tenant.
func (c *call) mayClaim() error {
	if c.h.Tenants != nil && !c.known {
		return errAPIKey
	}
	return c.h.secret.load(c.r.Context(), c.h.Inbox)
}

// errTenant is for who may know which tenants there are.
func errTenant(where, tenant string) problem {
	return invalid([]any{where, "tenant"}, "value_error", fmt.Sprintf("there is no tenant %.80q", tenant))
}

// mayRead returns the consumers whose claims the request may read, of those that it asks
// for.
func (c *call) mayRead(tenant string) (consumers []string, err error) {
	switch {
	case c.audits && tenant != "" && !c.h.hasTenant(tenant):
		return nil, errTenant("query", tenant)
	case c.audits && tenant != "":
		return []string{consumerName(tenant)}, nil
	case c.audits:
		return c.h.consumers(), nil
	case c.known && (tenant == "" || tenant == c.tenant):
		return []string{consumerName(c.tenant)}, nil
	case c.h.Tenants == nil && c.h.Legacy && tenant == "":
		return []string{name}, nil
	}
	return nil, errAudit
}

// replays reports whether the request may read the results of its tenant's claims.
func (c *call) replays() bool { return c.audits || c.known || c.h.Legacy }

// consumers are all whose claims the Handler serves.
func (h *Handler) consumers() []string {
	all := []string{name}
	if h.Tenants != nil {
		for _, tenant := range h.Tenants.All() {
			all = append(all, consumerName(tenant.Name))
		}
	}
	return all
}

func (h *Handler) hasTenant(name string) bool {
	return h.Tenants != nil && slices.ContainsFunc(h.Tenants.All(), func(t Tenant) bool { return t.Name == name })
}

func consumerName(tenant string) string {
	if tenant == "" {
		return name
	}
	return name + "/" + tenant
}

// tenantOf undoes consumerName.
func tenantOf(consumer string) string {
	if consumer == name {
		return ""
	}
	return consumer[len(name)+1:]
}

// operates returns the tenant whose claims the request may resolve. asked is the one that
// it names, if any.
func (c *call) operates(asked string) (tenant string, err error) {
	switch {
	case !c.operator:
		return "", problem{status: http.StatusForbidden, code: "operator", detail: "operator access required: an operator's API key, or the audit token"}
	case c.audits && c.h.Tenants != nil && asked == "" && !c.known:
		return "", invalid(bodyField("tenant"), "missing", "Field required: whose claim it is")
	case c.audits && asked != "" && !c.h.hasTenant(asked):
		return "", errTenant("body", asked)
	case c.audits && asked != "":
		return asked, nil
	case asked != "" && asked != c.tenant:
		return "", problem{status: http.StatusForbidden, code: "operator", detail: fmt.Sprintf("operator access required for tenant %.80q", asked)}
	}
	return c.tenant, nil
}
