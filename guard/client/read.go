package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// An AuditQuery says which claims to show. The zero value means all of them.
type AuditQuery struct {
	Agent    string    // who claimed
	Action   string    // the kind of effect
	Status   string    // "PENDING", "COMMITTED", "FAILED" or "IN_DOUBT"
	From, To time.Time // when it was claimed
	Tenant   string    // with Client.AuditToken: of that tenant only
	PageSize int       // how many are fetched at a time, up to 1000. 0: 100
}

// An AuditItem is a claim, as the audit shows it.
type AuditItem struct {
	ID          string
	Action      string
	Agent       string
	Tenant      string
	Status      string          // "PENDING", "COMMITTED" or "FAILED"
	InDoubt     bool            // it is pending, and nobody knows whether the effect happened
	Reason      string          // why it is in doubt, or has failed
	Result      json.RawMessage // what it was settled with; nil: nothing
	Attempt     int64           // which attempt it is, to resolve it by
	ClaimedAt   time.Time
	CommittedAt time.Time // zero: it is pending
	LeaseUntil  time.Time
	Amount      string // a decimal number; "": none
	Currency    string
}

// Audit returns the claims, the newest first, page by page. The first error, an *Error,
// is the last that it yields.
func (c *Client) Audit(ctx context.Context, q AuditQuery) iter.Seq2[AuditItem, error] {
	values := query{
		"agent_id": q.Agent, "action": q.Action, "status": q.Status, "tenant": q.Tenant,
		"from_ts": timestamp(q.From), "to_ts": timestamp(q.To), "limit": number(q.PageSize),
	}.values()
	return pages(ctx, c, OpAudit, "/audit", values, func(w auditWire) AuditItem {
		return AuditItem{
			ID: w.ID, Action: w.Action, Agent: w.Agent, Tenant: w.Tenant, Status: w.Status, InDoubt: w.InDoubt, Reason: w.Reason,
			Result: shown(w.Result), Attempt: w.Attempt, ClaimedAt: moment(w.ClaimedAt), CommittedAt: moment(w.CommittedAt),
			LeaseUntil: moment(w.LeaseUntil), Amount: string(w.Amount), Currency: w.Currency,
		}
	})
}

type auditWire struct {
	ID          string `json:"request_id"`
	Action      string
	Agent       string `json:"agent_id"`
	Tenant      string
	Status      string
	InDoubt     bool `json:"in_doubt"`
	Reason      string
	Result      json.RawMessage
	Attempt     int64
	ClaimedAt   float64 `json:"claimed_at"`
	CommittedAt float64 `json:"committed_at"`
	LeaseUntil  float64 `json:"lease_until"`
	Amount      json.Number
	Currency    string
}

// An EventQuery says which events to show. The zero value means all of them.
type EventQuery struct {
	Kind      string // such as "claimed", "blocked" or "in doubt"
	ID        string // of the request
	Agent     string
	Action    string
	Currency  string
	MinAmount string // decimal numbers
	MaxAmount string
	From, To  time.Time
	Tenant    string // with Client.AuditToken: of that tenant only
	Ascending bool   // the oldest first
	PageSize  int    // how many are fetched at a time, up to 1000. 0: 100
}

// An Event is something that happened to a claim.
type Event struct {
	Number   int64 // they are in this order
	At       time.Time
	Kind     string
	ID       string // of the request
	Agent    string
	Action   string
	Tenant   string
	Amount   string // a decimal number; "": none
	Currency string
	Note     string
	Actor    string // who did it
	Attempt  int64
	Payload  json.RawMessage // of the request; nil: none
	Result   json.RawMessage // nil: none
}

// Events returns what happened to claims, the newest first, page by page. The first
// error, an *Error, is the last that it yields.
func (c *Client) Events(ctx context.Context, q EventQuery) iter.Seq2[Event, error] {
	order := ""
	if q.Ascending {
		order = "asc"
	}
	values := query{
		"kind": q.Kind, "request_id": q.ID, "agent_id": q.Agent, "action": q.Action, "currency": q.Currency,
		"min_amount": q.MinAmount, "max_amount": q.MaxAmount, "from_ts": timestamp(q.From), "to_ts": timestamp(q.To),
		"tenant": q.Tenant, "order": order, "limit": number(q.PageSize),
	}.values()
	return pages(ctx, c, OpEvents, "/events", values, func(w eventWire) Event {
		return Event{
			Number: w.Number, At: moment(w.At), Kind: w.Kind, ID: w.ID, Agent: w.Agent, Action: w.Action, Tenant: w.Tenant,
			Amount: string(w.Amount), Currency: w.Currency, Note: w.Note, Actor: w.Actor, Attempt: w.Attempt,
			Payload: shown(w.Payload), Result: shown(w.Result),
		}
	})
}

type eventWire struct {
	Number   int64 `json:"id"`
	At       float64
	Kind     string
	ID       string `json:"request_id"`
	Agent    string `json:"agent_id"`
	Action   string
	Tenant   string
	Amount   json.Number
	Currency string
	Note     string
	Actor    string
	Attempt  int64
	Payload  json.RawMessage
	Result   json.RawMessage
}

// page is what the guard answers to a query.
type page[W any] struct {
	Items *[]W   `json:"items"`
	Next  string `json:"next_cursor"`
}

func (p *page[W]) accept(body []byte) error {
	*p = page[W]{}
	if err := json.Unmarshal(body, p); err != nil || p.Items == nil {
		return errors.New("it has no items of the right form")
	}
	return nil
}

func acceptPage(body []byte) error { return new(page[json.RawMessage]).accept(body) }

// pages yields what a query finds, and asks for each page when it is needed.
func pages[W, T any](ctx context.Context, c *Client, op Op, path string, query url.Values, convert func(W) T) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		query := maps.Clone(query) // it may be ranged over again
		if err := c.check(); err != nil {
			yield(none, failed(op, "", fmt.Errorf("%w: %w", ErrInvalid, err)))
			return
		}
		for cursor := ""; ; {
			if cursor != "" {
				query.Set("cursor", cursor)
			}
			var p page[W]
			r := request{op: op, method: http.MethodGet, path: path + "?" + query.Encode(), audit: true, accept: p.accept}
			if err := c.repeat(ctx, &r, time.Now().Add(c.patience())); err != nil {
				yield(none, err)
				return
			}
			for _, item := range *p.Items {
				if !yield(convert(item), nil) {
					return
				}
			}
			if p.Next == "" {
				return
			}
			if p.Next == cursor {
				yield(none, failed(op, "", fmt.Errorf("%w: its pages have no end", ErrUnavailable)))
				return
			}
			cursor = p.Next
		}
	}
}

// query is what a query asks for. "" stands for what it does not.
type query map[string]string

func (q query) values() url.Values {
	values := url.Values{}
	for name, value := range q {
		if value != "" {
			values.Set(name, value)
		}
	}
	return values
}

func number(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

// timestamp is a time in seconds since 1970, to the microsecond.
func timestamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return strconv.FormatFloat(float64(t.UnixMicro())/1e6, 'f', 6, 64)
}

func moment(seconds float64) time.Time {
	if seconds == 0 {
		return time.Time{}
	}
	return time.UnixMicro(int64(math.Round(seconds * 1e6)))
}
