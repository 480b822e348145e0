// Package duetime reads when a message is to be sent that is to be sent later.
package duetime

import (
	"database/sql"
	"errors"
	"strconv"
	"time"
)

// A Time is when a scheduled message is to be sent: at a time or, if that is the zero one, a
// while after the begin of its transaction.
type Time struct {
	At   time.Time
	Wait time.Duration
}

var errInvalid = errors.New("want a time of the years 1 to 9999, as in 2026-12-24T18:00:00Z, or how long to wait, as in 90s or 24h (use outbox.DeliverAt or outbox.DeliverIn)")

// Read reads the value of outbox.DeliverAfterMetadata.
func Read(value string) (*Time, error) {
	if wait, err := time.ParseDuration(value); err == nil {
		return &Time{Wait: wait}, nil
	}
	at, err := time.Parse(time.RFC3339, value)
	if err == nil {
		// Postgres would round it, perhaps to before the time.
		at = at.UTC().Add(time.Microsecond - time.Nanosecond).Truncate(time.Microsecond)
	}
	if err != nil || at.Year() < 1 || at.Year() > 9999 || at.IsZero() {
		return nil, errInvalid
	}
	return &Time{At: at}, nil
}

// SQL is the column deliver_after, given the names of what Texts returns.
func SQL(at, microseconds string) string {
	return `coalesce(` + at + `::timestamptz, now() + make_interval(secs => ` + microseconds + `::double precision / 1000000))`
}

// Texts are the time, or for how many microseconds to wait: one of both, the other is NULL.
// Of nil both are.
func (t *Time) Texts() (at, microseconds sql.NullString) {
	switch {
	case t == nil:
	case t.At.IsZero():
		microseconds = sql.NullString{String: strconv.FormatInt(t.Wait.Microseconds(), 10), Valid: true}
	default:
		at = sql.NullString{String: t.At.Format(time.RFC3339Nano), Valid: true}
	}
	return at, microseconds
}
