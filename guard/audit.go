package guard

import (
	"database/sql"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/pgarray"
)

// Limits of a list.
const (
	initialLimit = 100
	mostLimit    = 1000
	mostOffset   = 100000

	// countUpTo is how far a list is counted: counting millions takes longer than reading
	// a page of them.
	countUpTo = 10000
)

// auditItem is a claim, as SafeAgent lists it and with what it lacks.
type auditItem struct {
	RequestID   string          `json:"request_id"`
	Action      string          `json:"action"`
	Status      string          `json:"status"`
	Result      json.RawMessage `json:"result"`
	ClaimedAt   timestamp       `json:"claimed_at"`
	CommittedAt timestamp       `json:"committed_at"`
	AgentID     *string         `json:"agent_id"`

	InDoubt    bool      `json:"in_doubt"`
	Reason     *string   `json:"reason"`
	Attempt    int64     `json:"attempt"` // its fencing token, for /resolve
	LeaseUntil timestamp `json:"lease_until"`
	Amount     *string   `json:"amount"`
	Currency   *string   `json:"currency"`
	Tenant     *string   `json:"tenant"`

	// ProviderKey is what the attempts were told to give the provider as their id.
	ProviderKey string `json:"provider_key"`
}

type auditList struct {
	Items          []auditItem `json:"items"`
	Rows           []auditItem `json:"rows,omitzero"` // as Items, for old clients
	Total          int         `json:"total"`
	TotalIsAtLeast bool        `json:"total_is_at_least,omitempty"`
	Limit          int         `json:"limit"`
	Offset         int         `json:"offset"`
	NextCursor     *string     `json:"next_cursor"`
}

// audit answers GET /audit: claims, the newest first.
func (c *call) audit(ids) error {
	q := c.query("request_id", "agent_id", "action", "status", "from_ts", "to_ts", "limit", "offset", "cursor", "tenant")
	consumers, err := c.mayRead(q.text("tenant"))
	if err != nil {
		return err
	}
	list := auditList{
		Items: []auditItem{},
		Limit: q.integer("limit", initialLimit, 1, mostLimit), Offset: q.integer("offset", 0, 0, mostOffset),
	}
	f := new(filter)
	from := c.auditFilter(f, q)
	after, ok := q.cursor()
	if ok && list.Offset > 0 {
		q.fail("offset", "value_error", "goes without a cursor")
	}
	if err := q.err(); err != nil {
		return err
	}
	if err := c.count(&list, *f, from, consumers); err != nil {
		return err
	}
	if ok {
		// Claims of two tenants may have one time and one id.
		consumer, key, _ := strings.Cut(after.key, " ")
		f.and("(t.claimed_at, t.key, t.consumer) < (" + f.arg(after.at) + ", " + f.arg(key) + ", " + f.arg(consumer) + ")")
	}
	if err := c.listClaims(&list, f, from, consumers); err != nil {
		return err
	}
	if c.h.Legacy {
		list.Rows = list.Items
	}
	c.write(http.StatusOK, list)
	return nil
}

// auditFilter reads the conditions, and returns the table with the claims.
func (c *call) auditFilter(f *filter, q *query) (from string) {
	from = c.h.table("claims") + " AS t"
	f.and("t.claimed_at IS NOT NULL")
	f.times(q, "t.claimed_at")
	f.equal("t.key", q.text("request_id"))
	f.equal("t.agent", q.text("agent_id"))
	switch action := q.text("action"); {
	case action != "" && c.h.Legacy:
		// The scope of a claim counts as its action, too. Two searches, as no index has both.
		a := f.arg(action)
		table := c.h.table("claims")
		from = `(SELECT * FROM ` + table + ` WHERE consumer = who.name AND action = ` + a + `
			UNION ALL SELECT * FROM ` + table + ` WHERE consumer = who.name AND scope = ` + a + ` AND action IS DISTINCT FROM ` + a + `) AS t`
	default:
		f.equal("t.action", action)
	}
	switch q.choice("status", "PENDING", "IN_DOUBT", "COMMITTED", "FAILED") {
	case "PENDING":
		f.and("t.settled_at IS NULL")
	case "IN_DOUBT":
		f.and("t.settled_at IS NULL AND " + inDoubt)
	case "COMMITTED":
		f.and("t.outcome = 'settled'")
	case "FAILED":
		f.and("t.outcome IN ('failed', 'dead')")
	}
	return from
}

// inDoubt is whether an unsettled claim is.
const inDoubt = "(t.in_doubt_since IS NOT NULL OR t.lease_until < clock_timestamp())"

// count counts the list, up to a number.
func (c *call) count(list *auditList, f filter, from string, consumers []string) error {
	text := `SELECT count(*) FROM (
	SELECT FROM unnest(` + f.arg(pgarray.Of(consumers)) + `::text::text[]) AS who (name), LATERAL (
		SELECT FROM ` + from + ` WHERE t.consumer = who.name AND ` + f.sql() + `
		ORDER BY t.claimed_at DESC, t.key DESC LIMIT ` + strconv.Itoa(countUpTo+1) + `
	) AS t LIMIT ` + strconv.Itoa(countUpTo+1) + `) AS counted`
	err := c.h.read(c.r.Context(), text, f.args, func(rows *sql.Rows) error { return rows.Scan(&list.Total) })
	if list.Total > countUpTo {
		list.Total, list.TotalIsAtLeast = countUpTo, true
	}
	return err
}

func (c *call) listClaims(list *auditList, f *filter, from string, consumers []string) error {
	const order = "t.claimed_at DESC, t.key DESC, t.consumer DESC"
	var last cursor
	text := `SELECT consumer, key, COALESCE(action, ''), agent, COALESCE(outcome, ''), result, claimed_at, settled_at,
	settled_at IS NULL AND ` + inDoubt + `, reason, token, lease_until, amount::text, currency
FROM (` + perConsumer(f, from, order, consumers, list.Limit, list.Offset) + `) AS t
ORDER BY ` + order
	err := c.h.read(c.r.Context(), text, f.args, func(rows *sql.Rows) error {
		item, consumer, err := scanClaim(rows)
		if err == nil {
			list.Items = append(list.Items, item)
			last = cursor{time.Time(item.ClaimedAt), consumer + " " + item.RequestID} // no consumer of ours has a space
		}
		return err
	})
	if len(list.Items) == list.Limit {
		next := last.String()
		list.NextCursor = &next
	}
	return err
}

func scanClaim(rows *sql.Rows) (i auditItem, consumer string, err error) {
	var outcome oncemill.Outcome
	var result []byte
	var settled sql.NullTime
	var claimed, lease time.Time
	err = rows.Scan(&consumer, &i.RequestID, &i.Action, &i.AgentID, &outcome, &result, &claimed, &settled,
		&i.InDoubt, &i.Reason, &i.Attempt, &lease, &i.Amount, &i.Currency)
	i.ClaimedAt, i.LeaseUntil, i.CommittedAt = timestamp(claimed), timestamp(lease), timestamp(settled.Time)
	i.ProviderKey = oncemill.ProviderKey(consumer, i.RequestID)
	i.Result, i.Tenant = existing(result), optional(tenantOf(consumer))
	switch outcome {
	case "":
		i.Status = "PENDING"
	case oncemill.Settled:
		i.Status = "COMMITTED"
	default:
		i.Status = "FAILED"
	}
	return i, consumer, err
}

// swept is the answer to POST /sweep. Nothing is ever swept: a claim whose outcome is
// unknown is not free.
type swept struct {
	Swept                  int    `json:"swept"`
	StalePending           int    `json:"stale_pending"`
	RequiresReconciliation bool   `json:"requires_reconciliation"`
	Action                 string `json:"action"`
}

// sweep answers POST /sweep: how many claims are in doubt.
func (c *call) sweep(ids) error {
	consumers := []string{name}
	if c.h.Tenants != nil {
		var err error
		if consumers, err = c.mayRead(""); err != nil {
			return err
		}
	}
	answer := swept{Action: "none"}
	text := `SELECT count(*) FROM ` + c.h.table("claims") + ` AS t
WHERE t.consumer = ANY ($1::text::text[]) AND t.settled_at IS NULL AND ` + inDoubt
	err := c.h.read(c.r.Context(), text, []any{pgarray.Of(consumers)}, func(rows *sql.Rows) error { return rows.Scan(&answer.StalePending) })
	if err != nil {
		return err
	}
	answer.RequiresReconciliation = answer.StalePending > 0
	c.write(http.StatusOK, answer)
	return nil
}
