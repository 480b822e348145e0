package guard

import (
	"database/sql"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/pgarray"
)

// eventItem is what happened to a claim.
type eventItem struct {
	ID        int64           `json:"id"`
	At        timestamp       `json:"at"`
	Kind      string          `json:"kind"`
	RequestID string          `json:"request_id"`
	AgentID   *string         `json:"agent_id"`
	Action    *string         `json:"action"`
	Tenant    *string         `json:"tenant"`
	Amount    *string         `json:"amount"`
	Currency  *string         `json:"currency"`
	Note      *string         `json:"note"`
	Actor     *string         `json:"actor"`
	Attempt   *int64          `json:"attempt"`
	Payload   json.RawMessage `json:"payload"`
	Result    json.RawMessage `json:"result"`
}

type eventList struct {
	Items      []eventItem `json:"items"`
	NextCursor *string     `json:"next_cursor"`
}

// settleMargin is how long ago an event has to be to be on a list from old to new: one
// that is written by a transaction which is still under way could otherwise be passed by
// the cursor.
const settleMargin = 10 * time.Second

var eventKinds = []string{
	string(oncemill.EventClaimed), string(oncemill.EventRepeated), string(oncemill.EventTakenOver), string(oncemill.EventAsking),
	string(oncemill.EventExtended), string(oncemill.EventSettled), string(oncemill.EventFailed), string(oncemill.EventDead),
	string(oncemill.EventReleased), string(oncemill.EventInDoubt), string(oncemill.EventAsked), string(oncemill.EventBlocked),
	string(oncemill.EventConflict), string(oncemill.EventRefused),
}

// mostPage is how many bytes of payloads and results a page has, but for its last event:
// a thousand events can have more than a hundred megabytes of them.
const mostPage = 4 << 20

var errPageFull = errors.New("guard: the page is full")

// eventQuery is what a list of events is asked for.
type eventQuery struct {
	consumers []string
	filter    filter
	asc       bool
	limit     int
	after     *cursor
}

// eventParameters are what /events can be asked for.
var eventParameters = []string{
	"kind", "request_id", "agent_id", "action", "actor", "currency", "min_amount", "max_amount",
	"from_ts", "to_ts", "order", "limit", "cursor", "tenant", "format",
}

// events answers GET /events.
func (c *call) events(ids) error {
	q := c.query(eventParameters...).only(eventParameters...)
	consumers, err := c.mayRead(q.text("tenant"))
	if err != nil {
		return err
	}
	e := eventQuery{consumers: consumers, limit: q.integer("limit", initialLimit, 1, mostLimit), asc: q.choice("order", "desc", "asc") == "asc"}
	c.eventFilter(&e.filter, q)
	if after, ok := q.cursor(); ok {
		if _, err := strconv.ParseInt(after.key, 10, 64); err != nil {
			q.fail("cursor", "cursor", "Input should be the next_cursor of an answer of /events")
		}
		e.after = &after
	}
	export := q.choice("format", "json", "ndjson") == "ndjson"
	if err := q.err(); err != nil {
		return err
	}
	if export {
		return c.exportEvents(e)
	}
	list, err := c.listEvents(e)
	if err != nil {
		return err
	}
	c.write(http.StatusOK, list)
	return nil
}

func (c *call) eventFilter(f *filter, q *query) {
	f.times(q, "t.at")
	f.equal("t.kind", q.choice("kind", eventKinds...))
	f.equal("t.key", q.text("request_id"))
	f.equal("t.agent", q.text("agent_id"))
	f.equal("t.action", q.text("action"))
	f.equal("t.actor", q.text("actor"))
	f.equal("t.currency", q.text("currency"))
	if least, ok := q.decimal("min_amount"); ok {
		f.and("t.amount >= " + f.arg(least) + "::text::numeric")
	}
	if most, ok := q.decimal("max_amount"); ok {
		f.and("t.amount <= " + f.arg(most) + "::text::numeric")
	}
}

// listEvents reads one page. In the order of time, events that are not old enough wait.
func (c *call) listEvents(e eventQuery) (list eventList, err error) {
	f := filter{where: append([]string(nil), e.filter.where...), args: append([]any(nil), e.filter.args...)}
	order, compare := "t.at DESC, t.id DESC", "<"
	if e.asc {
		order, compare = "t.at, t.id", ">"
		f.and("t.at < clock_timestamp() - " + f.arg(settleMargin.Microseconds()) + " * interval '1 microsecond'")
	}
	if e.after != nil {
		f.and("(t.at, t.id) " + compare + " (" + f.arg(e.after.at) + ", " + f.arg(e.after.key) + "::text::bigint)")
	}
	text := `SELECT id, at, kind, consumer, key, agent, action, amount::text, currency, note, actor, token, payload, result
FROM (` + perConsumer(&f, c.h.table("events")+" AS t", order, e.consumers, e.limit, 0) + `) AS t ORDER BY ` + order
	list.Items = []eventItem{}
	ctx, cancel := c.timeout()
	defer cancel()
	size := 0
	err = c.h.read(ctx, text, f.args, func(rows *sql.Rows) error {
		item, err := scanEvent(rows)
		list.Items = append(list.Items, item)
		if size += len(item.Payload) + len(item.Result); err == nil && size > mostPage {
			err = errPageFull
		}
		return err
	})
	full := errors.Is(err, errPageFull)
	if full {
		err = nil
	}
	if n := len(list.Items); err == nil && (n == e.limit || full) {
		last := list.Items[n-1]
		next := cursor{time.Time(last.At), strconv.FormatInt(last.ID, 10)}.String()
		list.NextCursor = &next
	}
	return list, err
}

func scanEvent(rows *sql.Rows) (e eventItem, err error) {
	var consumer string
	var at time.Time
	var payload, result []byte
	err = rows.Scan(&e.ID, &at, &e.Kind, &consumer, &e.RequestID, &e.AgentID, &e.Action, &e.Amount, &e.Currency,
		&e.Note, &e.Actor, &e.Attempt, &payload, &result)
	e.At, e.Tenant, e.Payload, e.Result = timestamp(at), optional(tenantOf(consumer)), existing(payload), existing(result)
	return e, err
}

// exportEvents writes all events that match, one JSON object a line.
func (c *call) exportEvents(e eventQuery) error {
	e.limit = mostLimit
	out := http.NewResponseController(c.w)
	for page := 0; ; page++ {
		list, err := c.listEvents(e)
		if err != nil && page == 0 {
			return err
		}
		if err != nil {
			// The status is sent. Whoever reads must see that this is not all.
			c.h.Logger.ErrorContext(c.r.Context(), "guard: an export has broken off", "error", err)
			panic(http.ErrAbortHandler)
		}
		if page == 0 {
			c.w.Header().Set("Content-Type", "application/x-ndjson")
		}
		// Not every server can be told, and then its own limit counts.
		_ = out.SetWriteDeadline(time.Now().Add(c.h.Timeout))
		encoder := json.NewEncoder(c.w)
		for _, item := range list.Items {
			if err := encoder.Encode(item); err != nil {
				return nil // nobody reads any more
			}
		}
		if err := out.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return nil
		}
		if list.NextCursor == nil {
			return nil
		}
		last := list.Items[len(list.Items)-1]
		e.after = &cursor{time.Time(last.At), strconv.FormatInt(last.ID, 10)}
	}
}

// summaryParameters are what /summary can be asked for.
var summaryParameters = []string{"agent_id", "action", "from_ts", "to_ts", "tenant"}

// blockedItem sums up what did not happen a second time.
type blockedItem struct {
	Tenant   *string `json:"tenant"`
	Action   *string `json:"action"`
	Currency *string `json:"currency"`
	Blocked  int     `json:"blocked"` // claims that were refused
	Effects  int     `json:"effects"` // of so many ids
	Amount   string  `json:"amount"`  // of each id once
}

type blockedList struct {
	Items   []blockedItem `json:"items"`
	Blocked int           `json:"blocked"`
	Effects int           `json:"effects"`
}

// summary answers GET /summary: claims that were refused, by action and currency. Who asks
// again and again while a claim is pending is refused each time, so that amounts are
// summed by id. Claims of /claim/test are left out.
func (c *call) summary(ids) error {
	q := c.query(summaryParameters...).only(summaryParameters...)
	consumers, err := c.mayRead(q.text("tenant"))
	if err != nil {
		return err
	}
	f := new(filter)
	f.times(q, "t.at")
	f.equal("t.agent", q.text("agent_id"))
	f.equal("t.action", q.text("action"))
	if err := q.err(); err != nil {
		return err
	}
	list := blockedList{Items: []blockedItem{}}
	// The kinds that are not among those, in so many words, let the index of the others serve.
	text := `SELECT consumer, action, currency, sum(blocked)::bigint, count(*), COALESCE(sum(amount), 0)::text
FROM (
	SELECT consumer, key, action, currency, count(*) AS blocked, max(amount) AS amount
	FROM ` + c.h.table("events") + ` AS t
	WHERE consumer = ANY (` + f.arg(pgarray.Of(consumers)) + `::text::text[]) AND kind IN ('blocked', 'conflict')
		AND kind NOT IN ('claimed', 'settled') AND key NOT LIKE '` + testPrefix + `%' AND ` + f.sql() + `
	GROUP BY 1, 2, 3, 4
) AS of_each
GROUP BY 1, 2, 3 ORDER BY 1, 2, 3`
	err = c.h.read(c.r.Context(), text, f.args, func(rows *sql.Rows) error {
		var consumer string
		var item blockedItem
		err := rows.Scan(&consumer, &item.Action, &item.Currency, &item.Blocked, &item.Effects, &item.Amount)
		item.Tenant = optional(tenantOf(consumer))
		list.Items = append(list.Items, item)
		list.Blocked += item.Blocked
		list.Effects += item.Effects
		return err
	})
	if err != nil {
		return err
	}
	c.write(http.StatusOK, list)
	return nil
}
