package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// A look is what the conductor sees while the run goes on.
type look struct {
	*run
	shown, looked time.Time
}

const (
	showEvery = 3 * time.Second
	lookEvery = time.Second
)

// along shows how far things are, and looks for anomalies if the run is to end with one. It
// returns whether it does.
func (l *look) along(ctx context.Context) (found bool) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if time.Since(l.shown) >= showEvery {
		l.shown = time.Now()
		var effects, arrivals, outbox int
		const query = `SELECT (SELECT count(*) FROM effects), (SELECT count(*) FROM arrivals), (SELECT count(*) FROM oncemill.outbox)`
		if err := l.site.db.QueryRowContext(ctx, query).Scan(&effects, &arrivals, &outbox); err == nil {
			l.screen.Status(fmt.Sprintf("%d effects, %d arrivals downstream, %d rows in the outbox; %d faults", effects, arrivals, outbox, sum(l.faults)))
		}
	}
	if !l.untilAnomaly || time.Since(l.looked) < lookEvery {
		return false
	}
	l.looked = time.Now()
	l.early = append(l.early, l.run.found...)
	for _, c := range slices.Concat(standing, along) {
		var what, key string
		if err := l.site.db.QueryRowContext(ctx, c.query+` LIMIT 1`).Scan(&what, &key); err == nil {
			l.early = append(l.early, anomaly{class: c.class, kind: c.kind, what: what, keys: []string{key}})
		}
	}
	if n := l.site.deadlocks(); n > 0 {
		l.early = append(l.early, deadlocked(n))
	}
	return len(l.early) > 0
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
