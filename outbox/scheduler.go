package outbox

import (
	"context"
	"database/sql"
	"time"

	"github.com/oncemill/oncemill/internal/dbcheck"
	"github.com/oncemill/oncemill/internal/grants"
	"github.com/oncemill/oncemill/schema"
)

// schedule moves scheduled rows to the outbox as they fall due, until ctx ends. It looks
// again when the next one is due, and after the PollInterval at the latest, or 100
// milliseconds if that is less, since there may be new ones.
func (r *Relay) schedule(ctx context.Context) {
	s := scheduler{Relay: r, trouble: trouble{
		what: "outbox relay: cannot move scheduled messages, will try again until it can", over: "outbox relay: moves scheduled messages again",
	}}
	for ctx.Err() == nil {
		pause, err := s.round(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			s.from, s.found = duePosition{}, false
		}
		s.report(orDefault(r.Logger), err)
		wait(ctx, s.pause(pause), nil)
	}
}

// A scheduler is one run of schedule.
type scheduler struct {
	*Relay
	trouble
	found bool // there is a table scheduled, and rows in it may be moved

	// from is behind what was moved, which vacuum cannot remove while any transaction
	// has an old snapshot: it is not stepped over again each time. Rows that were
	// committed late may be before it.
	from    duePosition
	scanned time.Time     // when it was last looked at from the beginning on
	walk    time.Duration // how long that took
}

// round moves what is due, and returns how long to wait for the next round.
func (s *scheduler) round(ctx context.Context) (pause time.Duration, err error) {
	if !s.found {
		if err = s.onConn(ctx, s.look); err != nil || !s.found {
			return noTableEvery, err
		}
	}
	// As in a relay's scan, searches from the beginning take a small part of the time.
	if time.Since(s.scanned) >= scanShare*s.walk {
		s.from = duePosition{}
	}
	for more := true; more && err == nil; {
		err = s.onConn(ctx, func(ctx context.Context, conn *sql.Conn) (err error) {
			more, pause, err = s.step(ctx, conn)
			return err
		})
	}
	return pause, err
}

// look finds out whether there is a table of scheduled rows, which is not so before schema
// version 6, and whether the relay's role may move them. It may not where the grants were
// made for the version before: such a relay does the rest of its work.
func (s *scheduler) look(ctx context.Context, conn *sql.Conn) error {
	found, err := dbcheck.HasTable(ctx, conn, schema.Quote(s.Schema)+".scheduled")
	if err != nil || !found {
		return err
	}
	needs := grants.On("scheduled", "SELECT, UPDATE (deliver_after), DELETE").And("outbox", "INSERT")
	if err := needs.Check(ctx, conn, s.Schema, "move scheduled messages"); err != nil {
		return err
	}
	s.found = true
	return nil
}

// step moves some rows if any are due. more means that others may be.
func (s *scheduler) step(ctx context.Context, conn *sql.Conn) (more bool, pause time.Duration, err error) {
	begun := time.Now()
	next, any, err := nextDue(ctx, conn, s.Schema, s.from)
	if s.from.at.IsZero() && err == nil {
		s.scanned, s.walk = begun, time.Since(begun)
	}
	if err != nil || !any || next > 0 {
		return false, s.until(next, any), err
	}
	m, err := s.moveSome(ctx, conn, s.from)
	if err != nil {
		return false, 0, err
	}
	if m.moved > 0 {
		s.Wake()
	}
	if m.moved == m.due {
		s.from = m.last
	}
	return m.moved > 0, s.lookInterval(), nil
}

// until is how long to wait where the next row is due in some time, if there is any.
func (s *scheduler) until(next time.Duration, any bool) time.Duration {
	if !any {
		return s.lookInterval()
	}
	return min(max(next, time.Millisecond), s.lookInterval())
}

// lookInterval is how often it looks for rows that are new.
func (s *scheduler) lookInterval() time.Duration { return max(s.pollInterval(), minLook) }
