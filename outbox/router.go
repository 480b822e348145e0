package outbox

import (
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
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
// A Relay works for each of the Sinks by itself: it fetches that one's rows alone, so that
// one that is away or slow, or has a long backlog, does not hold up the others. Rows with
// an ordering key keep their order within a Sink: one that is deferred or parked holds up
// those behind it that go to the same Sink. A row without a route holds up none.
//
// Relays of one table should have the same routes: of two that differ, both may publish a
// row whose topic goes to another Sink in each. Stop them all to change where a topic goes.
type Router struct {
	// Sinks are where rows go, by names that Routes uses and that logs and errors show.
	// Required.
	Sinks map[string]Sink

	// Routes says which topics go to which of them. Required.
	Routes []Route
}

var _ Sink = (*Router)(nil)

// PublishBatch publishes rows to the Sinks that the Routes give for their topics: to each
// its rows in their order, in one call, and to all at the same time. It returns once the
// slowest of them has.
func (r *Router) PublishBatch(ctx context.Context, rows []Row) []error {
	errs := make([]error, len(rows))
	var tasks sync.WaitGroup
	for name, at := range r.divide(rows) {
		lot := make([]Row, len(at))
		for i, k := range at {
			lot[i] = rows[k]
		}
		sink, ok := r.Sinks[name]
		if !ok {
			sink = unrouted{}
		}
		tasks.Go(func() {
			answers, err := publishTo(ctx, sink, lot)
			for i, k := range at {
				if errs[k] = err; err == nil {
					errs[k] = answers[i]
				}
			}
		})
	}
	tasks.Wait()
	return errs
}

// publishTo returns the Sink's answers, or an error for all of the rows if it has not as
// many. A panic is an error of each row: it is what a row can do to a Sink, and no reason
// to stop the process, and with it the other Sinks.
func publishTo(ctx context.Context, sink Sink, rows []Row) (answers []error, err error) {
	defer func() {
		if p := recover(); p != nil {
			answers, err = slices.Repeat([]error{fmt.Errorf("Sink %T panicked: %v\n%s", sink, p, debug.Stack())}, len(rows)), nil
		}
	}()
	answers = sink.PublishBatch(ctx, rows)
	if len(answers) != len(rows) {
		return nil, fmt.Errorf("%w: Sink %T returned %d errors for %d rows, want one for each", ErrUnavailable, sink, len(answers), len(rows))
	}
	return answers, nil
}

// divide returns where in a batch the rows of each Sink are, by its name. Those without a
// route have none.
func (r *Router) divide(rows []Row) map[string][]int {
	lots := make(map[string][]int)
	for i, row := range rows {
		name, _ := r.route(row.Topic)
		lots[name] = append(lots[name], i)
	}
	return lots
}

// unrouted is the Sink of rows without a route.
type unrouted struct{}

func (unrouted) PublishBatch(_ context.Context, rows []Row) []error {
	errs := make([]error, len(rows))
	for i, row := range rows {
		errs[i] = fmt.Errorf("%w: no route for topic %q: add one to Router.Routes (with oncemill relay: --route '%s=SINK'), or a last one for all other topics ('*=SINK'), and have the row tried again", ErrRefused, row.Topic, row.Topic)
	}
	return errs
}

// A destination is a Sink of a Relay, and which rows are for it.
type destination struct {
	name   string // "" if there is only one
	sink   Sink
	topics string // a condition in SQL; "" means all
}

// destinations returns where a Relay's rows go.
func (r *Relay) destinations() []destination {
	router, ok := r.Sink.(*Router)
	if !ok {
		return []destination{{sink: r.Sink}}
	}
	names := router.names()
	which := router.which(names)
	var all []destination
	for i, name := range names {
		all = append(all, destination{name: name, sink: router.Sinks[name], topics: fmt.Sprintf("%s = %d", which, i)})
	}
	if _, ok := router.route(anyCharacter); !ok {
		all = append(all, destination{name: "none", sink: unrouted{}, topics: which + " = -1"})
	}
	return all
}

// which is, in SQL, the index of the Sink for a row's topic, -1 if no route has it.
func (r *Router) which(names []string) string {
	var sql strings.Builder
	sql.WriteString("CASE")
	for _, route := range r.Routes {
		fmt.Fprintf(&sql, " WHEN topic LIKE '%s' ESCAPE '!' THEN %d", likePattern.Replace(route.Topics), slices.Index(names, route.Sink))
	}
	sql.WriteString(" ELSE -1 END")
	return sql.String()
}

// likePattern makes a LIKE pattern, inside of quotes, of a route's.
var likePattern = strings.NewReplacer("*", "%", "%", "!%", "_", "!_", "!", "!!", "'", "''")
