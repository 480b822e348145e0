package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/oncemill/oncemill/outbox"
)

var outboxReplayCommand = command{
	name:    "outbox replay",
	summary: "publish again what was published, for a broker that has lost it",
	help: `
Put messages back into the outbox that were published and have been kept, so that
relays publish them again, in their order: when the broker has lost them. Relays keep
what they publish for as long as their --keep says.

  oncemill outbox replay --since 2h --dry-run
  oncemill outbox replay --since 2026-11-30T14:00:00Z --until 2026-11-30T15:00:00Z
  oncemill outbox replay --since 24h --topic 'orders.*' --key customer-7

Consumers inside Once drop what they have handled before, for as long as their claims
are kept: replay as much as you like to be sure. Consumers without Once handle all of it
again.

Messages come behind those that are waiting in the outbox already. If it is stopped, it
says with which flags to go on. None of the flags that say which is read from the
environment.`,
	prepare: prepareOutboxReplay,
}

// replayOptions are the flags of the command outbox replay.
type replayOptions struct {
	database
	since, until moments
	topic        *string
	key          *[]byte
	dryRun       *bool
}

func prepareOutboxReplay(f *flags) action {
	o := replayOptions{database: f.database()}
	f.moment(&o.since, "since", "those published from then on: a time, such as 2026-11-30T14:00:00Z, or how\nlong ago, such as 2h; required")
	f.moment(&o.until, "until", "those published before; likewise (default: all until now)")
	o.topic, o.key = f.topicPattern(), f.orderingKey()
	o.dryRun = f.toggle("dry-run", "only say how many there are")
	f.onlyHere("dry-run")
	return func(ctx context.Context, stdout, stderr io.Writer) error { return o.run(ctx, stdout, stderr) }
}

// moments is a time that was given, or how long ago it is.
type moments struct {
	at    time.Time
	ago   time.Duration
	given bool
}

// moment declares a flag for a time.
func (f *flags) moment(m *moments, name, usage string) {
	f.add(name, "TIME", usage, func(value string) error {
		m.given = true
		if ago, err := time.ParseDuration(value); err == nil {
			m.ago = ago
			if ago < 0 {
				return errors.New("want how long ago it is without a sign, such as 2h")
			}
			return nil
		}
		var err error
		if m.at, err = time.Parse(time.RFC3339, value); err != nil || m.at.IsZero() {
			return errors.New("want a time such as 2026-11-30T14:00:00Z, or how long ago it is, such as 2h")
		}
		return nil
	})
	f.onlyHere(name)
}

// when returns the time, given that it is now.
func (m moments) when(now time.Time) time.Time {
	if m.at.IsZero() {
		return now.Add(-m.ago)
	}
	return m.at
}

func (o replayOptions) run(ctx context.Context, stdout, stderr io.Writer) error {
	if !o.since.given {
		return usagef("needs --since: from when on? (such as --since 2h, or --since 2026-11-30T14:00:00Z)")
	}
	admin, close, err := o.admin(ctx)
	if err != nil {
		return err
	}
	defer close()
	var now time.Time // by its own clock, as that has said when messages were published
	if err := admin.DB.QueryRowContext(ctx, `SELECT clock_timestamp()`).Scan(&now); err != nil {
		return err
	}
	r := outbox.Replay{Since: o.since.when(now), Until: o.until.when(now), Topic: *o.topic, Key: *o.key, DryRun: *o.dryRun}
	if !r.Until.After(r.Since) {
		return usagef("--until is %s: must be after --since, %s", r.Until.UTC().Format(time.RFC3339), r.Since.UTC().Format(time.RFC3339))
	}
	said := time.Now()
	r.Progress = func(rows int64) {
		if time.Since(said) >= sayEvery {
			said = time.Now()
			fmt.Fprintf(stderr, "%d messages are in the outbox again\n", rows)
		}
	}
	n, err := admin.Replay(ctx, r)
	between := fmt.Sprintf("--since %s --until %s", r.Since.UTC().Format(time.RFC3339Nano), r.Until.UTC().Format(time.RFC3339Nano))
	if err != nil {
		return fmt.Errorf("%w (%d messages are in the outbox again; the others come with the same flags and %s)", err, n, between)
	}
	became := "are in the outbox again"
	switch {
	case *o.dryRun:
		became = "would be published again"
	case n == 1:
		became = "is in the outbox again"
	}
	_, err = fmt.Fprintf(stdout, "%s %s (%s)\n", messages(n, "kept"), became, between)
	return err
}

// sayEvery is how often it is said how far a replay is.
const sayEvery = 2 * time.Second
