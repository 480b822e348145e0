package oncemill

import (
	"context"
	"time"
)

const (
	// purgeEvery is how long Run waits at most between two looks at a table, and
	// purgeOften how long at least once it has found nothing more that is due.
	purgeEvery = time.Minute
	purgeOften = time.Second

	// purgeShare is the share of its time in which a sweep that is not far behind has a
	// statement under way: one in so many.
	purgeShare = 10

	// farBehind is the share of the time for which rows are kept by which a sweep may be
	// behind: one in so many.
	farBehind = 50
)

// Run purges this Inbox's claims when they are older than Retention, until ctx
// ends, and then returns nil. It purges the consumers that this Inbox has
// handed out, so it may run in every process that consumes. While the database
// is away it logs that once and goes on when it is back.
//
// It spreads its work over time, and takes a tenth of one connection's time, or as much
// more as it takes to go through old claims twice as fast as they were made.
func (in *Inbox) Run(ctx context.Context) error {
	in.start.Do(in.setUp)
	p := purger{in: in, sweeps: make(map[string][]*sweep), failing: make(map[*sweep]bool)}
	for {
		next := time.Now().Add(purgeEvery)
		for _, s := range p.all() {
			if !s.pace.due.After(time.Now()) {
				p.sweep(ctx, s)
			}
			if ctx.Err() != nil {
				return nil
			}
			if s.pace.due.Before(next) {
				next = s.pace.due
			}
		}
		timer := time.NewTimer(time.Until(next))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// A purger is one Run of an Inbox.
type purger struct {
	in      *Inbox
	sweeps  map[string][]*sweep // by consumer
	failing map[*sweep]bool
}

// all returns the sweeps of all consumers that there are by now.
func (p *purger) all() (all []*sweep) {
	p.in.consumers.Range(func(name, _ any) bool {
		consumer := name.(string)
		if p.sweeps[consumer] == nil {
			p.sweeps[consumer] = p.in.sweeps(consumer)
		}
		all = append(all, p.sweeps[consumer]...)
		return true
	})
	return all
}

// sweep purges a batch. One that fails holds up no others.
func (p *purger) sweep(ctx context.Context, s *sweep) {
	b, err := s.batch(ctx)
	if ctx.Err() != nil && err != nil {
		return
	}
	s.pace.next(b, err, s.keep)
	if s.table == "claims" && b.rows > 0 && p.in.Observer.Purged != nil {
		p.in.Observer.Purged(ctx, s.consumer, b.rows)
	}
	were := len(p.failing)
	if err == nil {
		delete(p.failing, s)
	} else {
		p.failing[s] = true
	}
	switch {
	case err != nil && were == 0:
		p.in.Logger.ErrorContext(ctx, "oncemill: purging claims failed, will try again", "consumer", s.consumer, "table", s.table, "error", err)
	case were > 0 && len(p.failing) == 0:
		p.in.Logger.InfoContext(ctx, "oncemill: purging claims works again")
	}
}

// pace decides when a sweep's next batch is due.
type pace struct {
	due      time.Time
	ended    time.Time     // when the last round was over
	wait     time.Duration // how long the next one was then waited for
	rows     int64         // purged in this round
	failures int           // in a row
}

// next is told what the last batch has done.
func (p *pace) next(b swept, err error, keep time.Duration) {
	now := time.Now()
	switch {
	case err != nil:
		p.due = now.Add(min(purgeOften<<min(p.failures, 10), purgeEvery))
		p.failures++
		return
	case b.full:
		p.due = now.Add(b.pause(keep))
		p.rows += b.rows
	default:
		p.endRound(now, p.rows+b.rows)
	}
	p.failures = 0
}

// endRound waits until about a batch is due, if rows come as they came of late, but not
// much longer than the time before: they may come faster.
func (p *pace) endRound(now time.Time, rows int64) {
	wait := 2 * p.wait
	if rows > 0 && !p.ended.IsZero() {
		wait = min(wait, now.Sub(p.ended)/time.Duration(rows)*purgeBatch)
	}
	p.wait = min(max(wait, purgeOften), purgeEvery)
	p.due, p.ended, p.rows = now.Add(p.wait), now, 0
}

// pause is how long to wait after a batch when there are further rows that are due. Half
// of the time is always left to others.
func (b *swept) pause(keep time.Duration) time.Duration {
	pause := (purgeShare - 1) * b.took
	if b.behind > keep/farBehind {
		pause = min(pause, b.span/2-b.took)
	}
	return max(pause, b.took)
}
