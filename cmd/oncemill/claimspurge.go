package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/oncemill/oncemill"
)

var claimsPurgeCommand = command{
	name:    "claims purge",
	summary: "forget old claims of a consumer, once",
	help: `
Forget the claims of one consumer that were settled longer ago than --older-than, as
Inbox.Run does all the time in a program that has it. Look first, then do it:

  oncemill claims purge --consumer billing --older-than 720h --dry-run
  oncemill claims purge --consumer billing --older-than 720h --yes

Claims in flight or in doubt stay. So do events. Errors of handlers that are as old
go with the claims.

A claim is what tells a redelivery from a new message. Take a time longer than the
broker can deliver a message again: the stream's MaxAge or the topic's retention, and
whatever somebody may replay. From then on a message from before that time that has
no claim is refused as too old, whether it was handled or not, and one that does not
say from when it is would run again. A time below 168h (7 days, the default of
Inbox.Retention) needs --below-retention, and one below 10m is never taken.

It deletes 1,000 claims in a transaction, along an index, and waits for nobody, so it
can be run beside any load. It can be stopped at any time, and run again.`,
	prepare: prepareClaimsPurge,
}

// usualRetention is the default of Inbox.Retention.
const usualRetention = 7 * 24 * time.Hour

// claimsPurgeOptions are the flags of the command claims purge.
type claimsPurgeOptions struct {
	database
	consumer                *string
	olderThan               *time.Duration
	dryRun, yes, belowUsual *bool
}

func prepareClaimsPurge(f *flags) action {
	o := claimsPurgeOptions{
		database:   f.database(),
		consumer:   f.text("consumer", "NAME", "whose claims to forget; required"),
		olderThan:  new(time.Duration),
		dryRun:     f.toggle("dry-run", "only count them"),
		yes:        f.toggle("yes", "forget them"),
		belowUsual: f.toggle("below-retention", "take a time below 168h: the broker delivers nothing again that is as old"),
	}
	f.add("older-than", "TIME", "for how long claims stay after they were settled, such as 720h; required", func(value string) (err error) {
		if *o.olderThan, err = time.ParseDuration(value); err != nil || *o.olderThan <= 0 {
			return errors.New("want a time above 0 with its unit, such as 720h")
		}
		return nil
	})
	f.onlyHere("consumer", "older-than", "dry-run", "yes", "below-retention")
	return func(ctx context.Context, stdout, stderr io.Writer) error { return o.run(ctx, stdout, stderr) }
}

func (o claimsPurgeOptions) check() error {
	switch {
	case *o.consumer == "":
		return usagef("needs --consumer: whose claims to forget (oncemill claims list shows whose there are)")
	case *o.olderThan == 0:
		return usagef("needs --older-than: for how long claims stay after they were settled, such as 720h")
	case *o.olderThan < oncemill.LeastRetention:
		return usagef("--older-than is %v: must be at least %v, since clocks differ", *o.olderThan, oncemill.LeastRetention)
	case *o.olderThan < usualRetention && !*o.belowUsual:
		return usagef("--older-than is %v, below %v: a message that the broker delivers again after that would be refused, or run twice; add --below-retention if it never does", *o.olderThan, usualRetention)
	case *o.dryRun == *o.yes:
		return usagef("needs one of --dry-run, to count what would go, and --yes, to forget it")
	}
	return nil
}

func (o claimsPurgeOptions) run(ctx context.Context, stdout, stderr io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	consumer, close, err := o.database.consumer(ctx, *o.consumer, nil)
	if err != nil {
		return err
	}
	defer close()
	if *o.dryRun {
		return o.count(ctx, consumer.Inbox(), stdout)
	}
	return o.purge(ctx, consumer.Inbox(), stdout, stderr)
}

// clockMargin is how much longer the purge keeps claims than it is told to.
const clockMargin = oncemill.LeastRetention / 2

// due counts what is due, up to most.
func (o claimsPurgeOptions) due(ctx context.Context, inbox *oncemill.Inbox, most int64) (n int64, oldest sql.NullTime, err error) {
	r := newClaimsReader(inbox)
	err = r.read(ctx, func(tx *sql.Tx) error {
		return tx.QueryRowContext(ctx, r.in(`
SELECT count(*), min(settled_at) FROM (
	SELECT settled_at FROM {schema}.claims
	WHERE consumer = $1 AND settled_at < now() - $2 * interval '1 microsecond'
	ORDER BY settled_at LIMIT $3
) AS due`), *o.consumer, (*o.olderThan+clockMargin).Microseconds(), most).Scan(&n, &oldest)
	})
	if err != nil {
		return 0, oldest, fmt.Errorf("count the claims that are due: %w", err)
	}
	return n, oldest, nil
}

func (o claimsPurgeOptions) count(ctx context.Context, inbox *oncemill.Inbox, stdout io.Writer) error {
	n, oldest, err := o.due(ctx, inbox, math.MaxInt64)
	switch {
	case err != nil:
		return err
	case n == 0:
		return printNothing(ctx, inbox, stdout, *o.consumer, "nothing", fmt.Sprintf("is older than %v", *o.olderThan))
	}
	_, err = fmt.Fprintf(stdout, "would forget %s of consumer %s, the oldest of %s; messages from before %s that have no claim would be refused\n",
		numberOfClaims(n), shown(*o.consumer), timeOrDash(oldest.Time), timeOrDash(time.Now().Add(-*o.olderThan)))
	return err
}

func numberOfClaims(n int64) string {
	if n == 1 {
		return "1 claim"
	}
	return fmt.Sprintf("%d claims", n)
}

// progressEvery is how often a long purge tells how far it is.
const progressEvery = 2 * time.Second

func (o claimsPurgeOptions) purge(ctx context.Context, inbox *oncemill.Inbox, stdout, stderr io.Writer) error {
	told, so := time.Now(), int64(0)
	own := &oncemill.Inbox{
		DB: inbox.DB, Schema: inbox.Schema, Retention: *o.olderThan,
		EventRetention: math.MaxInt64, // whoever keeps them knows for how long
		Observer: &oncemill.Observer{Purged: func(_ context.Context, _ string, claims int64) {
			if so += claims; time.Since(told) >= progressEvery {
				told = time.Now()
				fmt.Fprintf(stderr, "forgot %d claims so far\n", so)
			}
		}},
	}
	own.Consumer(*o.consumer) // is all that it purges
	n, err := own.Purge(ctx)
	if err != nil {
		return fmt.Errorf("%w (%d claims were forgotten before; it can be run again)", err, n)
	}
	left, _, err := o.due(ctx, inbox, 1)
	switch {
	case err != nil:
		return err
	case n == 0 && left == 0:
		return printNothing(ctx, inbox, stdout, *o.consumer, "nothing", fmt.Sprintf("is older than %v", *o.olderThan))
	case left > 0:
		return fmt.Errorf("forgot %s, and left others that another process holds or purges at this moment: run it again later", numberOfClaims(n))
	}
	_, err = fmt.Fprintf(stdout, "forgot %s of consumer %s\n", numberOfClaims(n), shown(*o.consumer))
	return err
}
