package outbox

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"time"
)

// A Router is a Sink that hands each row to one of several Sinks, by its topic:
//
//	&outbox.Router{
//		Sinks: map[string]outbox.Sink{"nats": natsSink, "kafka": kafkaSink},
//		Routes: []outbox.Route{
//			{Topics: "audit-*", Sink: "kafka"},
//			{Topics: "*", Sink: "nats"}, // all others
//		},
//	}
//
// The first route counts that matches. A row that none matches is refused, and so
// parked, with an error that names its topic.
//
// Each Sink gets its rows of a batch in their order, in one PublishBatch, and all
// work at the same time. What becomes of a row is what its own Sink says: one that
// is away, panics, or returns too few errors leaves the rows of the others as they
// are. The batch lasts until the slowest has returned, and at most a second longer
// than its time; a Sink that has not returned then gets nothing more until it has.
//
// So that one that is silent does not use up the time of all batches, a Sink that
// was unavailable for all that it was given is left alone for four times as long as
// that took, at most 10 seconds. Then it gets no more than 20 rows and a fifth of
// the batch's time, until it takes one. What it is not given meanwhile is
// ErrUnavailable, as what it did not take.
//
// A Router can be used from many goroutines. It must not be copied after first use.
type Router struct {
	// Sinks are where rows go, by names that Routes uses and that errors show.
	// Required.
	Sinks map[string]Sink

	// Routes says which topics go to which of them. Required.
	Routes []Route

	mu     sync.Mutex
	health map[string]*health // by the Sink's name
}

var _ Sink = (*Router)(nil)

// routerGrace is how long the Router waits for a Sink that should have returned.
const routerGrace = time.Second

// PublishBatch publishes rows to the Sinks that the Routes give for their topics.
func (r *Router) PublishBatch(ctx context.Context, rows []Row) []error {
	errs := make([]error, len(rows))
	lots := r.divide(rows, errs)
	for _, l := range lots {
		r.begin(ctx, l)
	}
	overtime, stop := outlive(ctx, routerGrace)
	defer stop()
	for _, l := range lots {
		for k, err := range r.await(overtime, l) {
			errs[l.at[k]] = err
		}
	}
	return errs
}

// await returns what became of a lot's rows.
func (r *Router) await(overtime context.Context, l *lot) []error {
	select {
	case <-l.returned:
		return l.errs
	case <-overtime.Done():
	}
	if r.leave(l) {
		return l.errs
	}
	return repeat(errNotReturned(l.name), len(l.rows))
}

func errNotReturned(name string) error {
	return fmt.Errorf("%w: sink %q does not return although its time is over; nothing more goes there until it does", ErrUnavailable, name)
}

// A lot is what one Sink gets of a batch.
type lot struct {
	name string
	sink Sink
	rows []Row
	at   []int   // where in the batch they are
	errs []error // what became of them; not to be read before returned is closed

	returned chan struct{}
	left     bool // nobody waits any more; guarded by Router.mu
}

// divide makes the lots of a batch. Rows without a route get their error.
func (r *Router) divide(rows []Row, errs []error) (lots []*lot) {
	routes := make(map[string]*lot) // by topic
	byName := make(map[string]*lot)
	for i, row := range rows {
		l, known := routes[row.Topic]
		if !known {
			if name, ok := r.route(row.Topic); ok {
				if l = byName[name]; l == nil {
					l = &lot{name: name, sink: r.Sinks[name], returned: make(chan struct{})}
					byName[name] = l
					lots = append(lots, l)
				}
			}
			routes[row.Topic] = l
		}
		if l == nil {
			errs[i] = errNoRoute(row.Topic)
			continue
		}
		l.rows, l.at = append(l.rows, row), append(l.at, i)
	}
	return lots
}

func errNoRoute(topic string) error {
	return fmt.Errorf("%w: no route for topic %q: add one to Router.Routes (with oncemill relay: --route '%s=SINK'), or a last one for all other topics ('*=SINK'), and have the row tried again", ErrRefused, topic, topic)
}

// begin has a lot published, as far as its Sink's health lets it.
func (r *Router) begin(ctx context.Context, l *lot) {
	n, share, why := r.admit(l.name, len(l.rows))
	l.errs = make([]error, len(l.rows))
	for i := n; i < len(l.rows); i++ {
		l.errs[i] = why
	}
	if n == 0 {
		close(l.returned)
		return
	}
	go func() {
		begun := time.Now()
		limited, cancel := limit(ctx, share)
		defer cancel()
		answers := l.publish(limited, n)
		blameAway(l.name, answers, share > 1)
		copy(l.errs, answers)
		r.note(l, n, time.Since(begun))
	}()
}

// limit returns a context with a share of the time that ctx has.
func limit(ctx context.Context, share int) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Until(deadline)/time.Duration(share))
}

// publish hands the first n rows to the Sink. A panic is no reason to stop the
// process, and with it the other Sinks: as what a row can do to a Sink, it counts
// as an attempt of each.
func (l *lot) publish(ctx context.Context, n int) (errs []error) {
	defer func() {
		if p := recover(); p != nil {
			errs = repeat(fmt.Errorf("sink %q panicked: %v\n%s", l.name, p, debug.Stack()), n)
		}
	}()
	errs = l.sink.PublishBatch(ctx, l.rows[:n:n])
	if len(errs) != n {
		return repeat(fmt.Errorf("%w: sink %q, a %T, returned %d errors for %d rows, want one for each", ErrUnavailable, l.name, l.sink, len(errs), n), n)
	}
	return errs
}

func repeat(err error, n int) []error {
	errs := make([]error, n)
	for i := range errs {
		errs[i] = err
	}
	return errs
}
