package oncemill

import (
	"context"
	"fmt"
	"time"
)

// An EventKind says what happened to a guarded claim.
type EventKind string

// What can happen to a guarded claim. Its events are the rows of the table events.
const (
	EventClaimed   EventKind = "claimed"    // the first attempt begins
	EventTakenOver EventKind = "taken over" // by another attempt, or by a resolver
	EventExtended  EventKind = "extended"   // another lease
	EventSettled   EventKind = "settled"    // the effect happened
	EventFailed    EventKind = "failed"     // it did not, and never will
	EventDead      EventKind = "dead"       // the message was given up, and is a dead letter
	EventReleased  EventKind = "released"   // it did not; the key is free
	EventInDoubt   EventKind = "in doubt"   // nobody knows
	EventAsked     EventKind = "asked"      // a resolver has asked, and still nobody knows
	EventBlocked   EventKind = "blocked"    // somebody else has claimed the key, and was refused
	EventConflict  EventKind = "conflict"   // the same, with another fingerprint
	EventRefused   EventKind = "refused"    // an end by somebody whose claim it is no longer
)

// Blocked is how many effects of a consumer did not happen a second time.
type Blocked struct {
	Consumer string
	Currency string // as given to Claim; "": none was
	Claims   int64  // how many were refused
	Amount   string // the sum of their amounts, as a decimal number
}

// Blocked sums up the claims that were refused from one time up to, but without,
// another, in the order of consumers and currencies: of one consumer or, with "", of
// all.
func (in *Inbox) Blocked(ctx context.Context, consumer string, from, to time.Time) ([]Blocked, error) {
	in.start.Do(in.setUp)
	rows, err := in.DB.QueryContext(ctx, in.sql.in(`
SELECT consumer, COALESCE(currency, ''), count(*), COALESCE(sum(amount), 0)::text
FROM {schema}.events
WHERE kind IN ('blocked', 'conflict') AND at >= $2 AND at < $3 AND ($1 = '' OR consumer = $1)
GROUP BY 1, 2 ORDER BY 1, 2`), consumer, from, to)
	if err != nil {
		return nil, fmt.Errorf("oncemill: sum up what was blocked: %w", markUnavailable(err))
	}
	defer rows.Close()
	var all []Blocked
	for rows.Next() {
		var b Blocked
		if err := rows.Scan(&b.Consumer, &b.Currency, &b.Claims, &b.Amount); err != nil {
			return nil, fmt.Errorf("oncemill: sum up what was blocked: %w", err)
		}
		all = append(all, b)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("oncemill: sum up what was blocked: %w", markUnavailable(err))
	}
	return all, nil
}
