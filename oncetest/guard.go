package oncetest

import (
	"context"
	"database/sql"
	"log/slog"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/schema"
)

// guard is the middleware with which a process works, for effects outside of Postgres.
func (c *checker) guard(db *sql.DB, consumer string) middleware.Guard {
	guard := *c.Guard
	inbox := &oncemill.Inbox{DB: db, Schema: c.schema, Logger: slog.New(slog.DiscardHandler)}
	if guard.Inbox != nil {
		inbox.Lease = guard.Inbox.Lease
	}
	guard.Inbox, guard.Consumer, guard.Probe = inbox, consumer, nil
	guard.Outbox = &outbox.Publisher{Schema: c.schema}
	guard.Key = keyFunc(guard.Key)
	return guard
}

// guardSteps returns all steps under Guard.
func guardSteps() []step {
	return []step{
		{name: "acked, and delivered again"},
		{name: "the process dies before the COMMIT of its claim", fault: fault{at: beforeClaim}},
		{name: "the process dies after the COMMIT of its claim, whose answer is lost", fault: fault{at: afterClaim}},
		{name: "the process dies when the handler has returned", fault: fault{at: atReturn}},
		{name: "the process dies before the COMMIT that settles its claim", fault: fault{at: beforeCommit}},
		{name: "the process dies after the COMMIT that settles its claim, whose answer is lost", fault: fault{at: afterCommit}},
		{name: "delivered twice at the same time, to one process", run: twiceAtATime(1)},
		{name: "delivered twice at the same time, to two processes", run: twiceAtATime(2)},
	}
}

// endLeases has the leases be over of claims that a process which is gone has left.
func (r *run) endLeases(ctx context.Context) error {
	if r.c.Guard == nil {
		return nil
	}
	_, err := r.c.DB.ExecContext(ctx, `UPDATE `+schema.Quote(r.c.schema)+`.claims
		SET lease_until = clock_timestamp() - interval '1 microsecond', effect_until = clock_timestamp()
		WHERE consumer = $1 AND settled_at IS NULL`, r.consumer)
	return err
}

// differences returns how a run's effects differ from what they may be. Without a provider
// that recognises keys, an effect in doubt is not tried again: at most once.
func (c *checker) differences(got effects) []difference {
	if c.Guard == nil || c.Guard.KeyLifetime > 0 {
		return c.compare(c.want, got)
	}
	most := got
	if got.outside < c.want.outside {
		most.outside = c.want.outside
	}
	none := effects{tables: make([]change, len(c.tables)), outside: c.want.outside}
	if len(c.compare(none, most)) == 0 {
		return nil
	}
	return c.compare(c.want, most)
}
