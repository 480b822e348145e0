package oncemill

import (
	"context"
	"fmt"
	"time"
)

const (
	// LeastRetention is the least Inbox.Retention and Inbox.EventRetention: 10 minutes. It is
	// twice the margin between clocks, so that a message whose claim can
	// have been purged is always old enough to be compared with the watermark.
	LeastRetention = 2 * clockMargin

	// purgeBatch is how many claims one statement deletes. Small batches hold
	// few row locks, for a short time, and let autovacuum keep up.
	purgeBatch = 1000

	// purgeEvery is the time between two rounds of Run. A round that is missed
	// only makes the next one longer.
	purgeEvery = time.Minute
)

// Run purges this Inbox's claims when they are older than Retention, until ctx
// ends, and then returns nil. It purges the consumers that this Inbox has
// handed out, so it may run in every process that consumes. While the database
// is away it logs that once and goes on when it is back.
func (in *Inbox) Run(ctx context.Context) error {
	in.start.Do(in.setUp)
	ticker := time.NewTicker(purgeEvery)
	defer ticker.Stop()
	failing := false
	for {
		_, err := in.Purge(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !failing:
			in.Logger.ErrorContext(ctx, "oncemill: purging claims failed, will try again", "error", err)
		case err == nil && failing:
			in.Logger.InfoContext(ctx, "oncemill: purging claims works again")
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// Purge deletes the claims of this Inbox's consumers that are older than
// Retention, once, and returns how many. Before it deletes any it moves the
// consumer's watermark, so that a message from that time is refused with
// ErrTooOld from then on. A consumer without such claims keeps its watermark: it
// may still be working off old messages, none of which it has forgotten.
func (in *Inbox) Purge(ctx context.Context) (claims int64, err error) {
	in.start.Do(in.setUp)
	in.consumers.Range(func(name, _ any) bool {
		var n int64
		n, err = in.purge(ctx, name.(string))
		claims += n
		return err == nil
	})
	if err != nil {
		return claims, fmt.Errorf("oncemill: purge: %w", markUnavailable(err))
	}
	return claims, nil
}

func (in *Inbox) purge(ctx context.Context, consumer string) (claims int64, err error) {
	if err := in.moveWatermark(ctx, consumer); err != nil {
		return 0, err
	}
	claims, err = inBatches(func() (int64, error) { return in.purgeClaims(ctx, consumer) })
	if err != nil {
		return claims, err
	}
	if _, err := inBatches(func() (int64, error) { return in.purgeErrors(ctx, consumer) }); err != nil {
		return claims, err
	}
	if _, err := inBatches(func() (int64, error) { return in.purgeEvents(ctx, consumer) }); err != nil {
		return claims, err
	}
	if claims > 0 && in.Observer.Purged != nil {
		in.Observer.Purged(ctx, consumer, claims)
	}
	return claims, nil
}

// inBatches calls purge until it finds less than a whole batch.
func inBatches(purge func() (int64, error)) (total int64, err error) {
	for {
		n, err := purge()
		total += n
		if err != nil || n < purgeBatch {
			return total, err
		}
	}
}

// moveWatermark says what will be deleted. It commits before anything is: see
// watermarkSQL.
func (in *Inbox) moveWatermark(ctx context.Context, consumer string) error {
	_, err := in.exec(ctx, `
INSERT INTO {schema}.watermarks AS w (consumer, purged_before)
SELECT $1, now() - $2 * interval '1 microsecond'
WHERE EXISTS (
	SELECT FROM {schema}.claims
	WHERE consumer = $1 AND settled_at < now() - ($2 + $3) * interval '1 microsecond')
ON CONFLICT (consumer) DO UPDATE
SET purged_before = GREATEST(w.purged_before, EXCLUDED.purged_before)`,
		consumer, in.Retention.Microseconds(), clockMargin.Microseconds())
	return err
}

// purgeClaims deletes one batch. Claims that another purge is deleting are
// skipped, so two of them never wait for each other.
func (in *Inbox) purgeClaims(ctx context.Context, consumer string) (int64, error) {
	return in.exec(ctx, `
DELETE FROM {schema}.claims WHERE ctid = ANY (ARRAY(
	SELECT c.ctid FROM {schema}.claims c, {schema}.watermarks w
	WHERE c.consumer = $1 AND w.consumer = $1
		AND c.settled_at < w.purged_before - $2 * interval '1 microsecond'
	ORDER BY c.settled_at
	LIMIT $3
	FOR UPDATE OF c SKIP LOCKED))`,
		consumer, clockMargin.Microseconds(), purgeBatch)
}

// purgeErrors forgets, one batch at a time, the handler errors of messages that
// have not failed for as long as claims are kept. Those that succeeded in the
// end are among them.
func (in *Inbox) purgeErrors(ctx context.Context, consumer string) (int64, error) {
	return in.exec(ctx, `
DELETE FROM {schema}.handler_errors WHERE ctid = ANY (ARRAY(
	SELECT ctid FROM {schema}.handler_errors
	WHERE consumer = $1 AND last_at < now() - $2 * interval '1 microsecond'
	ORDER BY last_at
	LIMIT $3
	FOR UPDATE SKIP LOCKED))`,
		consumer, in.Retention.Microseconds(), purgeBatch)
}

// purgeEvents forgets, one batch at a time, the events that are older than
// EventRetention, but for those of claims that are not settled yet.
func (in *Inbox) purgeEvents(ctx context.Context, consumer string) (int64, error) {
	return in.exec(ctx, `
DELETE FROM {schema}.events WHERE ctid = ANY (ARRAY(
	SELECT e.ctid FROM {schema}.events e
	WHERE e.consumer = $1 AND e.at < now() - $2 * interval '1 microsecond'
		AND NOT EXISTS (SELECT FROM {schema}.claims c WHERE c.consumer = e.consumer AND c.key = e.key AND c.settled_at IS NULL)
	ORDER BY e.at
	LIMIT $3
	FOR UPDATE OF e SKIP LOCKED))`,
		consumer, in.EventRetention.Microseconds(), purgeBatch)
}
