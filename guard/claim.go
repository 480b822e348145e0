package guard

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/oncemill/oncemill"
)

// Statuses of a claim, as SafeAgent has them.
const (
	statusProceed = "PROCEED"
	statusPending = "PENDING"
	statusSkip    = "SKIP"
)

// reply is the answer to a claim.
type reply struct {
	Status          string          `json:"status"`
	RequestID       string          `json:"request_id"`
	AgentID         *string         `json:"agent_id"`
	SettlementToken string          `json:"settlement_token,omitempty"`
	LeaseUntil      timestamp       `json:"lease_until,omitzero"`
	ProviderKey     string          `json:"provider_key,omitempty"`
	Existing        json.RawMessage `json:"existing,omitempty"`
	Failed          bool            `json:"failed,omitempty"`
	InDoubt         bool            `json:"in_doubt,omitempty"`
	Reason          string          `json:"reason,omitempty"`

	Test           bool `json:"test,omitempty"`
	CallsRemaining *int `json:"calls_remaining,omitempty"`
}

// claimRequest is the body of a claim, of whatever kind.
type claimRequest struct {
	id     string
	opts   oncemill.ClaimOptions
	replay bool

	// triple says that the id was made of an agent, an action and a scope. Who sends that
	// tests for SKIP alone, and would take PENDING for leave to go on.
	triple bool
}

// claim answers POST /claim.
func (c *call) claim(ids) error {
	b, err := c.readBody()
	if err != nil {
		return err
	}
	req, err := c.readClaim(b)
	if err != nil {
		return err
	}
	answer, err := c.claimAs(req)
	if err != nil {
		return err
	}
	if req.triple && answer.Status == statusPending {
		answer.Status = statusSkip
	}
	if c.h.Legacy && answer.Status == statusSkip && answer.Existing == nil {
		answer.Existing = existing(nil) // old clients read it without looking whether it is there
	}
	c.write(http.StatusOK, answer)
	return nil
}

// readClaim reads a claim by request id, or by agent, action and scope.
func (c *call) readClaim(b *body) (req claimRequest, err error) {
	if !b.has("request_id") && (b.has("action_type") || b.has("scope")) {
		return c.readTriple(b, func(agent, action, scope string) string { return agent + ":" + action + ":" + scope })
	}
	req.id = b.text("request_id", true, mostBody) // wrongID says how long it is
	req.opts.Action = b.text("action", true, oncemill.MostName)
	req.opts.Agent = b.text("agent_id", false, oncemill.MostName)
	if b.has("request_id") {
		if strings.HasPrefix(req.id, testPrefix) {
			return req, problem{status: http.StatusUnprocessableEntity, code: "invalid", detail: "test: prefix is reserved"}
		}
		if wrong := wrongID(req.id); wrong != "" && b.err() == nil {
			b.fail("request_id", "value_error", wrong)
		}
	}
	return req, c.readRest(b, &req)
}

// readTriple reads an agent, an action and a scope. Two of them that have the same id are
// told apart by the fingerprint.
func (c *call) readTriple(b *body, id func(agent, action, scope string) string) (req claimRequest, err error) {
	o := &req.opts
	o.Agent = b.text("agent_id", true, oncemill.MostName)
	o.Action = b.text("action_type", true, oncemill.MostName)
	o.Scope = b.text("scope", true, oncemill.MostName)
	req.triple = true
	req.id = id(o.Agent, o.Action, o.Scope)
	if wrong := wrongID(req.id); wrong != "" && b.err() == nil {
		b.fail("scope", "value_error", "agent_id:action_type:scope: "+wrong)
	}
	if err := c.readRest(b, &req); err != nil {
		return req, err
	}
	if o.Fingerprint == nil {
		o.Fingerprint = digest([]byte(tripleJSON(o.Agent, o.Action, o.Scope)))
	}
	return req, nil
}

// tripleJSON is the compact JSON of a triple, with its keys sorted.
func tripleJSON(agent, action, scope string) string {
	plain, _ := json.Marshal(map[string]string{"agent_id": agent, "action_type": action, "scope": scope}) // strings always can be
	text, _ := canonicalJSON(plain)
	return string(text)
}

// readRest reads what any claim may have.
func (c *call) readRest(b *body, req *claimRequest) error {
	o := &req.opts
	o.Nonce = b.nonce()
	o.Amount = b.decimal("amount")
	o.Currency = b.text("currency", false, 16)
	o.Lease = b.seconds("lease_seconds", oncemill.LeastLease, oncemill.MostLease)
	o.Actor = c.actor
	req.replay = b.flag("replay")
	if fingerprint := b.text("fingerprint", false, mostFingerprint); fingerprint != "" {
		o.Fingerprint = digest([]byte("fingerprint " + fingerprint))
	}
	if b.has("payload") {
		o.Payload = b.compact("payload")
		if len(o.Payload) > oncemill.MostResult {
			b.fail("payload", "too_long", "payload is larger than 65536 bytes: claim with a reference to it")
		} else if sorted, err := canonicalJSON(o.Payload); err != nil {
			b.fail("payload", "json_invalid", "JSON decode error: "+err.Error())
		} else if o.Fingerprint == nil {
			o.Fingerprint = digest(sorted)
		}
	}
	if o.Lease == 0 {
		o.Lease = c.h.Lease
	}
	return b.err()
}

func digest(text []byte) []byte {
	sum := sha256.Sum256(text)
	return sum[:]
}

// claimAs claims for the request's tenant. An error means that nobody may go on.
func (c *call) claimAs(req claimRequest) (reply, error) {
	ctx := c.r.Context()
	consumer := c.consumer()
	claim, err := consumer.Claim(ctx, req.id, req.opts)
	var e *oncemill.Error
	switch {
	case err == nil && ctx.Err() != nil && req.opts.Nonce == nil:
		// The caller is gone, and will never see its token.
		if err := claim.GiveBack(context.WithoutCancel(ctx), "the caller was gone"); err != nil {
			return reply{}, err
		}
		return reply{}, ctx.Err()
	case err == nil:
		return reply{
			Status: statusProceed, RequestID: req.id, AgentID: optional(req.opts.Agent),
			SettlementToken: c.h.secret.sign(consumer.Name(), req.id, claim.Token()), LeaseUntil: timestamp(claim.LeaseUntil()), ProviderKey: claim.ProviderKey(),
		}, nil
	case errors.As(err, &e) && (errors.Is(err, oncemill.ErrSettled) || errors.Is(err, oncemill.ErrInFlight) || errors.Is(err, oncemill.ErrInDoubt)):
		return c.refused(req, e), nil
	}
	return reply{}, err
}

// refused answers a claim of an id that is taken.
func (c *call) refused(req claimRequest, e *oncemill.Error) reply {
	r := reply{Status: statusPending, RequestID: req.id}
	held := e.Held
	if held == nil { // another call claims it at this moment
		return r
	}
	r.AgentID = optional(held.Agent)
	switch held.Outcome {
	case "":
		if r.InDoubt = errors.Is(e, oncemill.ErrInDoubt); r.InDoubt {
			r.Reason = held.Reason
		}
	case oncemill.Settled:
		r.Status = statusSkip
		if c.mayReplay(req) {
			r.Existing = existing(held.Result)
		}
	default:
		r.Status, r.Failed, r.Reason = statusSkip, true, held.Reason
	}
	return r
}

// mayReplay reports whether a claim that is skipped gets the result of the one that was
// settled.
func (c *call) mayReplay(req claimRequest) bool {
	if c.h.Legacy || req.replay && c.replays() {
		return true
	}
	_, ok := c.h.secret.verify(c.consumer().Name(), req.id, c.r.Header.Get(tokenHeader))
	return ok
}

// existing is a result as JSON.
func existing(result []byte) json.RawMessage {
	switch {
	case result == nil:
		return json.RawMessage("null")
	case json.Valid(result) && utf8.Valid(result) && !tooDeep(result): // it may come from elsewhere
		return result
	}
	text, _ := json.Marshal(string(result)) // strings always can be
	return text
}

// consumer is whose claims the request's tenant has.
func (c *call) consumer() *oncemill.Consumer { return c.h.Inbox.Consumer(consumerName(c.tenant)) }

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

const testPrefix = "test:"

// claimTest answers POST /claim/test: a claim like any other, but counted, and under an
// id of its own.
func (c *call) claimTest(ids) error {
	b, err := c.readBody()
	if err != nil {
		return err
	}
	req, err := c.readTriple(b, func(agent, action, scope string) string {
		return testPrefix + hex.EncodeToString(digest([]byte(tripleJSON(agent, action, scope))))
	})
	if err != nil {
		return err
	}
	remaining, again := c.h.tests.take(c.caller(), c.h.TestCalls, time.Now())
	if remaining < 0 {
		return limited(again)
	}
	answer, err := c.claimAs(req)
	if err != nil {
		return err
	}
	answer.Test, answer.CallsRemaining = true, &remaining
	c.write(http.StatusOK, answer)
	return nil
}
