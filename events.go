package oncemill

import (
	"context"
	"database/sql"
	"time"

	"github.com/oncemill/oncemill/internal/storedkey"
)

// An EventKind says what happened to a guarded claim.
type EventKind string

// What can happen to a guarded claim. Its events are the rows of the table events.
const (
	EventClaimed   EventKind = "claimed"    // the first attempt begins
	EventRepeated  EventKind = "repeated"   // the call that claimed it was made again: see ClaimOptions.Nonce
	EventTakenOver EventKind = "taken over" // another attempt begins
	EventAsking    EventKind = "asking"     // a resolver has taken it over, to ask
	EventExtended  EventKind = "extended"   // another lease
	EventSettled   EventKind = "settled"    // the effect happened
	EventFailed    EventKind = "failed"     // it did not, and never will
	EventDead      EventKind = "dead"       // the message was given up, and is a dead letter
	EventReleased  EventKind = "released"   // it did not; the key is free
	EventInDoubt   EventKind = "in doubt"   // nobody knows
	EventAsked     EventKind = "asked"      // it has, and still nobody knows
	EventBlocked   EventKind = "blocked"    // somebody else has claimed the key, and was refused
	EventConflict  EventKind = "conflict"   // the same, with another fingerprint
	EventRefused   EventKind = "refused"    // an end by somebody whose claim it is no longer
)

// Blocked is how many effects of a consumer did not happen a second time. A key that was
// claimed again several times is one effect, and its amount counts once.
type Blocked struct {
	Consumer string `json:"consumer"`
	Currency string `json:"currency"` // as given to Claim; "": none was
	Claims   int64  `json:"claims"`   // how many were refused
	Effects  int64  `json:"effects"`  // of how many keys
	Amount   string `json:"amount"`   // the sum of their amounts, of each key the largest, as a decimal number
}

// Blocked sums up the claims that were refused from one time up to, but without,
// another, in the order of consumers and currencies: of one consumer or, with "", of
// all.
func (in *Inbox) Blocked(ctx context.Context, consumer string, from, to time.Time) ([]Blocked, error) {
	in.start.Do(in.setUp)
	rows, err := in.DB.QueryContext(ctx, in.sql.in(`
SELECT consumer, currency, sum(claims)::bigint, count(*), COALESCE(sum(amount), 0)::text
FROM (
	SELECT consumer, key, COALESCE(currency, '') AS currency, count(*) AS claims, max(amount) AS amount
	FROM {schema}.events
	WHERE kind IN ('blocked', 'conflict') AND at >= $2 AND at < $3 AND ($1 = '' OR consumer = $1)
	GROUP BY 1, 2, 3
) AS of_each
GROUP BY 1, 2 ORDER BY 1, 2`), consumer, from, to)
	return collect("sum up what was blocked", rows, err, func(rows *sql.Rows) (b Blocked, err error) {
		err = rows.Scan(&b.Consumer, &b.Currency, &b.Claims, &b.Effects, &b.Amount)
		return b, err
	})
}

// An Event is what happened to one claim.
type Event struct {
	ID       int64     `json:"id"` // grows in the order in which events were written
	At       time.Time `json:"at"`
	Kind     EventKind `json:"kind"`
	Token    int64     `json:"token"` // 0: it is about none
	Actor    string    `json:"actor"` // who did it
	Note     string    `json:"note"`
	Action   string    `json:"action"` // as given to Claim, like what follows
	Agent    string    `json:"agent"`
	Amount   string    `json:"amount"`
	Currency string    `json:"currency"`
	Payload  []byte    `json:"payload"`
	Result   []byte    `json:"result"` // what the claim was settled with, or what a refused call wanted to settle it with
}

// Events returns up to limit events of one key, in their order, from after the event
// with the id after on. They are kept for Inbox.EventRetention.
func (c *Consumer) Events(ctx context.Context, key string, after int64, limit int) ([]Event, error) {
	rows, err := c.in.DB.QueryContext(ctx, c.in.sql.in(`
SELECT id, at, kind, COALESCE(token, 0), COALESCE(actor, ''), COALESCE(note, ''),
	`+aboutColumns+`, payload, result
FROM {schema}.events WHERE consumer = $1 AND key = ANY (ARRAY[$2, $3]) AND id > $4
ORDER BY id LIMIT $5`), c.name, storedKey(key), shownOr(key), after, limit)
	return collect("events of a claim", rows, err, scanEvent)
}

func scanEvent(rows *sql.Rows) (e Event, err error) {
	err = rows.Scan(&e.ID, &e.At, &e.Kind, &e.Token, &e.Actor, &e.Note, &e.Action, &e.Agent, &e.Amount, &e.Currency, &e.Payload, &e.Result)
	return e, err
}

// shownOr is the text that stands for key, also if key is that text itself, as InDoubt
// shows it.
func shownOr(key string) string {
	if storedkey.IsHash(key) {
		return key
	}
	return storedKey(key)
}
