package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

const (
	showEvery = 3 * time.Second
	lookEvery = time.Second
	lookLimit = 5 * time.Second // for an answer
)

// look shows how far things are while the run goes on, and looks for anomalies if the run is
// to end with one, until ctx ends. It has a goroutine of its own, as it waits for a Postgres
// that may be frozen, or be away, until the conductor mends that.
func (r *run) look(ctx context.Context) {
	var shown time.Time
	for ; ctx.Err() == nil; sleep(ctx, lookEvery) {
		if time.Since(shown) >= showEvery {
			shown = time.Now()
			r.show(ctx)
		}
		if found := r.lookAround(ctx); len(found) > 0 {
			_ = r.crew.Do(ctx, func() error { r.found = append(r.found, found...); return nil })
		}
	}
}

func (r *run) show(ctx context.Context) {
	var effects, arrivals, outbox int
	const query = `SELECT (SELECT count(*) FROM effects), (SELECT count(*) FROM arrivals), (SELECT count(*) FROM oncemill.outbox)`
	if r.ask(ctx, query, &effects, &arrivals, &outbox) != nil {
		return // next time
	}
	_ = r.crew.Do(ctx, func() error {
		r.screen.Status(fmt.Sprintf("%d effects, %d arrivals downstream, %d rows in the outbox; %d faults", effects, arrivals, outbox, sum(r.faults)))
		return nil
	})
}

// lookAround returns an anomaly of each kind that can be seen at any moment.
func (r *run) lookAround(ctx context.Context) (found []anomaly) {
	if !r.untilAnomaly {
		return nil
	}
	for _, c := range slices.Concat(standing, along) {
		var what, key string
		if r.ask(ctx, c.query+` LIMIT 1`, &what, &key) == nil {
			found = append(found, anomaly{class: c.class, kind: c.kind, what: what, keys: []string{key}})
		}
	}
	if n := r.site.deadlocks(); n > 0 {
		found = append(found, deadlocked(n))
	}
	return found
}

func (r *run) ask(ctx context.Context, query string, into ...any) error {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	return r.site.db.QueryRowContext(ctx, query).Scan(into...)
}

func deadlocked(n int) anomaly {
	return anomaly{class: unexplained, kind: "deadlock", what: fmt.Sprintf("Postgres has seen %d deadlocks: claims are made in one order", n)}
}

const (
	drainEvery = 200 * time.Millisecond
	drainLimit = 45 * time.Second // without any progress
)

// A rest is what is left to do.
type rest struct{ messages, rows, claims int }

// drain waits until everything that was sent is worked off. That it is not is an anomaly.
func (r *run) drain(ctx context.Context) error {
	var before rest
	var last time.Time
	quiet, progress := 0, time.Now()
	return r.crew.Attend(ctx, func() (bool, error) {
		r.crew.Changed()
		if time.Since(last) < drainEvery {
			return false, nil
		}
		last = time.Now()
		left, err := r.rest(ctx)
		switch {
		case err == nil && left == rest{}:
			quiet++ // a relay may have published what no consumer has been told of
			return quiet == 3, nil
		case err == nil && left != before:
			before, quiet, progress = left, 0, time.Now()
			r.screen.Status(fmt.Sprintf("%d messages, %d rows in the outbox and %d claims are left", left.messages, left.rows, left.claims))
		case time.Since(progress) > drainLimit:
			r.find("stuck", fmt.Sprintf("nothing has changed for %v: %d messages are not acknowledged, %d rows in the outbox, %d claims in flight (%v)",
				drainLimit, before.messages, before.rows, before.claims, err))
			return true, nil
		}
		return false, nil
	})
}

func (r *run) rest(ctx context.Context) (left rest, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if left.messages, err = r.site.broker.pending(ctx); err != nil {
		return left, err
	}
	// Claims of charges are resolved by asking; of the others those are left that are in doubt.
	err = r.site.db.QueryRowContext(ctx, `
SELECT (SELECT count(*) FROM oncemill.outbox), (SELECT count(*) FROM oncemill.claims
WHERE settled_at IS NULL AND (consumer = $1 OR lease_until > clock_timestamp()))`, charges).Scan(&left.rows, &left.claims)
	return left, err
}
