package outbox

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// Run publishes rows until ctx ends, then finishes the batch that it has begun,
// and returns nil. It returns an error at the start if Check does, and at the
// end if the batch was not finished within DrainTimeout. A database or broker
// that goes away later does not end it: it waits and tries again. At most one
// Run of a Relay may go on at a time.
func (r *Relay) Run(ctx context.Context) error {
	if err := r.Check(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	stopListening := r.listen(ctx)
	defer stopListening()
	publishing, release := outlive(ctx, r.drainTimeout())
	defer release()
	settling, release := outlive(publishing, settleTimeout)
	defer release()

	l := loop{
		Relay: r, publishing: publishing, settling: settling,
		scan: scan{floor: bottom}, pace: pace{size: min(r.batch(), firstBatch)}, deferred: make(map[int64]time.Time),
	}
	for ctx.Err() == nil {
		more, err := l.round(ctx)
		if ctx.Err() != nil {
			return l.cutOff(errors.Join(err, l.finish()))
		}
		l.report(err)
		l.pause(ctx, more, err)
	}
	return l.cutOff(l.finish())
}

// A loop is one Run of a Relay.
type loop struct {
	*Relay

	// publishing is the context of the Sink. It ends DrainTimeout after Run's.
	// settling is that of transactions, and ends later still: what the broker has
	// acknowledged should be deleted, and no COMMIT be cancelled half-way.
	publishing, settling context.Context

	scan scan // where fetches begin
	pace pace // how much they take

	behind *batch    // published, and not settled before the next one is on its way
	ahead  *batch    // fetched, to be published next
	alone  time.Time // until when there is no second connection to be had

	failures  int                 // rounds that failed in a row
	awaySince time.Time           // when the first of them did
	warned    time.Time           // when it was last said that rows are deferred
	deferred  map[int64]time.Time // rows that this loop has deferred, by id, and when they fall due
	due       time.Time           // when the last of the rows falls due that this loop has deferred; zero if that has been looked at
}

// outlive returns a context that ends a while after ctx does. release frees it.
func outlive(ctx context.Context, while time.Duration) (longer context.Context, release func()) {
	longer, cut := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.NewTimer(while)
		defer timer.Stop()
		select {
		case <-timer.C:
			cut(errCut)
		case <-longer.Done():
		}
	})
	return longer, func() {
		stop()
		cut(nil)
	}
}

// cutOff turns a round's error at the end of Run into Run's.
func (l *loop) cutOff(err error) error {
	if err != nil && errors.Is(context.Cause(l.publishing), errCut) {
		return errCut
	}
	return nil
}

// report logs and records the outcome of a round, the log only if it is another
// than that of the round before.
func (l *loop) report(err error) {
	before := l.lastOutcome()
	defer l.setOutcome(err) // who sees it may rely on the log
	logger := orDefault(l.Logger)
	switch {
	case err != nil:
		if before == nil {
			l.awaySince = time.Now()
			logger.Warn("outbox relay: cannot go on, will try again until it can", "error", err)
		}
		l.failures++
	case before != nil:
		logger.Info("outbox relay: goes on", "after", time.Since(l.awaySince).Round(time.Millisecond), "failed_rounds", l.failures)
		l.failures = 0
	}
}

// pause waits until the next round is due. A round that failed is repeated ever
// more slowly, and nothing wakes it up: the database or the broker is away.
func (l *loop) pause(ctx context.Context, more bool, err error) {
	switch {
	case err != nil:
		wait(ctx, backoff(minAway, maxAway, l.failures-1), nil)
	case !more:
		poll := l.pollInterval()
		if !l.due.IsZero() {
			poll = min(poll, l.minBackoff())
		}
		if l.scan.owed {
			poll = min(poll, time.Until(l.scan.due()))
		}
		wait(ctx, poll, l.woken())
	}
}

// wait returns after d, or when ctx ends or woken has something.
func wait(ctx context.Context, d time.Duration, woken <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-woken:
	}
}

// backoff returns least doubled as many times as there were attempts before, at
// most most, give or take a quarter so that what failed together does not come
// back together.
func backoff(least, most time.Duration, before int) time.Duration {
	d := least
	for range before {
		if d >= most {
			break
		}
		d *= 2
	}
	d = min(d, most)
	return d - d/4 + rand.N(d/2+1)
}
