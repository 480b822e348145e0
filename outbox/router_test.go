package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
)

func rowsTo(topics ...string) []outbox.Row {
	rows := make([]outbox.Row, len(topics))
	for i, topic := range topics {
		rows[i] = outbox.Row{ID: int64(i + 1), Topic: topic}
	}
	return rows
}

// allTo returns n rows to one topic after another.
func allTo(n int, topics ...string) []outbox.Row {
	var all []string
	for range n {
		all = append(all, topics...)
	}
	return rowsTo(all...)
}

func ids(rows []outbox.Row) (ids []int64) {
	for _, row := range rows {
		ids = append(ids, row.ID)
	}
	return ids
}

func ok(_ context.Context, rows []outbox.Row) []error { return make([]error, len(rows)) }

func away(_ context.Context, rows []outbox.Row) []error {
	errs := make([]error, len(rows))
	for i := range errs {
		errs[i] = fmt.Errorf("%w: down", outbox.ErrUnavailable)
	}
	return errs
}

// silent is a Sink that takes all the time it has.
func silent(ctx context.Context, rows []outbox.Row) []error {
	<-ctx.Done()
	errs := make([]error, len(rows))
	for i := range errs {
		errs[i] = ctx.Err()
	}
	return errs
}

func TestTheFirstRouteThatMatchesCounts(t *testing.T) {
	t.Parallel()
	for topic, want := range map[string]string{
		"orders": "exact", "orders.paid": "orders", "orders.eu.paid": "orders", "orders.": "orders",
		"orders.eu.dead": "dead", "audit-logins": "audit", "audit-": "audit", "audit": "rest", "xorders": "rest",
		"a.b": "middle", "a.x.b": "middle", "a.bx": "rest", "aXYbcZ.b": "rest", "a..b": "middle", "": "rest",
		"u/1/v/2/w": "several", "u//v//w": "several", "u/v/w": "rest",
	} {
		got := ""
		router := &outbox.Router{Sinks: make(map[string]outbox.Sink)}
		for _, one := range [][2]string{
			{"*.dead", "dead"}, {"orders", "exact"}, {"orders.*", "orders"}, {"audit-*", "audit"}, {"a.*b", "middle"}, {"u/*/v/*/w", "several"}, {"*", "rest"},
		} {
			router.Routes = append(router.Routes, outbox.Route{Topics: one[0], Sink: one[1]})
			router.Sinks[one[1]] = script(func(_ context.Context, rows []outbox.Row) []error {
				got = one[1]
				return make([]error, len(rows))
			})
		}
		if err := router.Validate(); err != nil {
			t.Fatal(err)
		}
		if err := router.PublishBatch(t.Context(), rowsTo(topic))[0]; err != nil || got != want {
			t.Errorf("%q went to %q (%v), want %q", topic, got, err, want)
		}
	}
}

func TestWrongRoutesFailAtStart(t *testing.T) {
	t.Parallel()
	a, b := script(ok), script(ok)
	both := map[string]outbox.Sink{"a": a, "b": b}
	for name, test := range map[string]struct {
		sinks map[string]outbox.Sink
		// routes are topics and sinks in turn.
		routes []string
		words  []string
	}{
		"no sinks":         {nil, []string{"*", "a"}, []string{"Sinks is empty"}},
		"no routes":        {both, nil, []string{"Routes is empty", `"*"`}},
		"no topics":        {both, []string{"", "a", "*", "b"}, []string{"route 1", "no topics", "orders.*"}},
		"NATS wildcard":    {both, []string{"orders.>", "a", "*", "b"}, []string{"route 1", `"orders.>"`, `"orders.*"`}},
		"all of NATS":      {both, []string{"orders", "a", ">", "b"}, []string{"route 2", `"*"`}},
		"unknown sink":     {both, []string{"x", "a", "y", "c"}, []string{"route 2", `"c"`, "a, b"}},
		"unused sink":      {both, []string{"x", "a"}, []string{`"b"`, "no route"}},
		"nil sink":         {map[string]outbox.Sink{"a": nil}, []string{"x", "a"}, []string{`"a"`, "nil"}},
		"twice":            {both, []string{"x", "a", "x", "b"}, []string{"route 2", "never reached", `route 1, "x"`, "before"}},
		"behind a pattern": {both, []string{"y", "a", "orders.*", "a", "orders.eu.*", "b"}, []string{`route 3, "orders.eu.*"`, `route 2, "orders.*"`}},
		"behind all":       {both, []string{"*", "a", "x", "b"}, []string{"route 2", `route 1, "*"`}},
		"pattern of two":   {both, []string{"a*b*c", "a", "ab*bc", "b"}, []string{"route 2", "never reached"}},
		"a sink's own":     {map[string]outbox.Sink{"a": &outbox.Router{}}, []string{"*", "a"}, []string{`"a"`, "Sinks is empty"}},
	} {
		router := &outbox.Router{Sinks: test.sinks}
		for i := 0; i < len(test.routes); i += 2 {
			router.Routes = append(router.Routes, outbox.Route{Topics: test.routes[i], Sink: test.routes[i+1]})
		}
		err := (&outbox.Relay{DB: testenv.DB(t), Sink: router}).Check(t.Context())
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		for _, word := range test.words {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %q does not say %s", name, err, word)
			}
		}
	}
}

// Routes that overlap are no mistake as long as each has topics of its own.
func TestRoutesMayOverlap(t *testing.T) {
	t.Parallel()
	router := &outbox.Router{Sinks: map[string]outbox.Sink{"a": script(ok)}}
	for _, topics := range []string{"orders.eu.*", "orders.*", "*.eu", "a*b*c", "ab*c*", "orders", "*"} {
		router.Routes = append(router.Routes, outbox.Route{Topics: topics, Sink: "a"})
	}
	if err := router.Validate(); err != nil {
		t.Error(err)
	}
}

func TestARowWithoutARouteIsParkedWithTheRemedy(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	publish(t, db, "lost", 1)
	publish(t, db, "orders", 1)
	got := newRecorder(nil)
	relay := start(t, &outbox.Relay{DB: db, Sink: &outbox.Router{
		Sinks: map[string]outbox.Sink{"a": got}, Routes: []outbox.Route{{Topics: "orders", Sink: "a"}},
	}})
	if sum := relay.settled(t, 2); sum.Published != 1 || sum.Parked != 1 {
		t.Errorf("batches are %+v", sum)
	}
	var text string
	if err := db.QueryRow(`SELECT last_error FROM oncemill.outbox WHERE parked_at IS NOT NULL AND topic = 'lost'`).Scan(&text); err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{`"lost"`, "Router.Routes", "--route 'lost=SINK'", "'*=SINK'"} {
		if !strings.Contains(text, word) {
			t.Errorf("%q does not say %s", text, word)
		}
	}
}

func TestEachSinkGetsItsRowsInOrderInOneBatch(t *testing.T) {
	t.Parallel()
	a, b := newRecorder(nil), newRecorder(nil)
	router := &outbox.Router{
		Sinks:  map[string]outbox.Sink{"a": a, "b": b},
		Routes: []outbox.Route{{"x", "a"}, {"y", "b"}, {"z", "a"}},
	}
	rows := allTo(100, "x", "y", "z")
	if err := errors.Join(router.PublishBatch(t.Context(), rows)...); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(a.batches, []int{200}) || !slices.Equal(b.batches, []int{100}) {
		t.Errorf("batches of %v and %v", a.batches, b.batches)
	}
	if !slices.IsSorted(ids(a.published())) || !slices.IsSorted(ids(b.published())) {
		t.Error("rows overtook each other")
	}
}

func TestSinksWorkSideBySide(t *testing.T) {
	t.Parallel()
	var both sync.WaitGroup // each sink waits for the other
	both.Add(2)
	meet := script(func(ctx context.Context, rows []outbox.Row) []error {
		both.Done()
		both.Wait()
		return make([]error, len(rows))
	})
	router := &outbox.Router{Sinks: map[string]outbox.Sink{"a": meet, "b": meet}, Routes: []outbox.Route{{"x", "a"}, {"y", "b"}}}
	done := make(chan error, 1)
	go func() { done <- errors.Join(router.PublishBatch(t.Context(), rowsTo("x", "y"))...) }()
	if err := receive(t, done); err != nil {
		t.Error(err)
	}
}

func TestASinkThatFailsLeavesTheOthersRowsAlone(t *testing.T) {
	t.Parallel()
	broken := errors.New("no")
	for name, test := range map[string]struct {
		sink        script
		unavailable bool
		words       string
	}{
		"away":       {away, true, "down"},
		"silent":     {silent, false, "deadline"}, // for the Relay to judge
		"panics":     {func(context.Context, []outbox.Row) []error { panic("oh") }, false, "panicked: oh"},
		"no answers": {func(context.Context, []outbox.Row) []error { return nil }, true, "0 errors for 2 rows"},
		"too many":   {func(context.Context, []outbox.Row) []error { return make([]error, 3) }, true, "3 errors for 2 rows"},
		"one fails":  {func(context.Context, []outbox.Row) []error { return []error{broken, broken} }, false, "no"},
	} {
		router := &outbox.Router{Sinks: map[string]outbox.Sink{"good": script(ok), "bad": test.sink}, Routes: []outbox.Route{{"bad", "bad"}, {"*", "good"}}}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		errs := router.PublishBatch(ctx, rowsTo("bad", "1", "bad", "2"))
		cancel()
		if errs[1] != nil || errs[3] != nil {
			t.Errorf("%s: the good sink's rows failed: %v", name, errs)
		}
		for _, err := range []error{errs[0], errs[2]} {
			if err == nil || errors.Is(err, outbox.ErrUnavailable) != test.unavailable || !strings.Contains(err.Error(), test.words) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// A sink may be silent, and not even heed its context, with a long backlog in front of
// everybody else's rows: those go out all the same.
func TestASinkThatIsSilentHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	for name, key := range map[string]string{"without keys": "NULL", "ordered": "convert_to((n % 7)::text, 'UTF8')"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := testenv.DB(t)
			released := make(chan struct{})
			silent := script(func(_ context.Context, rows []outbox.Row) []error {
				<-released
				return make([]error, len(rows))
			})
			good := newRecorder(nil)
			insert := `INSERT INTO oncemill.outbox (topic, ordering_key) SELECT $1, ` + key + ` FROM generate_series(1, $2::int) AS n`
			exec(t, db, insert, "x", 5000)
			relay := start(t, &outbox.Relay{DB: db, Sink: &outbox.Router{
				Sinks: map[string]outbox.Sink{"good": good, "silent": silent}, Routes: []outbox.Route{{"x", "silent"}, {"*", "good"}},
			}})
			for range 3 {
				exec(t, db, insert, "y", 500)
				relay.Wake()
				poll(t, func() bool { return value[int](t, db, `SELECT count(*) FROM oncemill.outbox WHERE topic = 'y'`) == 0 })
			}
			if n := rowCount(t, db); n != 5000 {
				t.Errorf("%d rows are left, want those of the silent sink", n)
			}
			close(released)
			poll(t, func() bool { return rowCount(t, db) == 0 })
		})
	}
}

// So may one that is away. Its rows are not asked for again and again in front of the
// others', and the log says which sink it is.
func TestASinkThatIsAwayHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	logger, log := hearLog()
	var isAway atomic.Bool
	isAway.Store(true)
	bad := script(func(ctx context.Context, rows []outbox.Row) []error {
		if isAway.Load() {
			return away(ctx, rows)
		}
		return make([]error, len(rows))
	})
	exec(t, db, `INSERT INTO oncemill.outbox (topic) SELECT 'x' FROM generate_series(1, 5000)`)
	relay := start(t, &outbox.Relay{DB: db, Logger: logger, Sink: &outbox.Router{
		Sinks: map[string]outbox.Sink{"good": newRecorder(nil), "bad": bad}, Routes: []outbox.Route{{"x", "bad"}, {"y", "good"}},
	}})
	for range 20 {
		publish(t, db, "y", 10)
		relay.Wake()
		poll(t, func() bool { return rowCount(t, db) == 5000 })
	}
	if err := relay.Ready(); err == nil || !strings.Contains(err.Error(), "down") {
		t.Errorf("ready: %v", err)
	}
	isAway.Store(false)
	poll(t, func() bool { return rowCount(t, db) == 0 })
	poll(t, func() bool { return relay.Ready() == nil })
	if text := log(); strings.Count(text, "cannot go on") != 1 || !strings.Contains(text, "sink=bad") || !strings.Contains(text, "goes on") {
		t.Errorf("the log is\n%s", text)
	}
}

// What SQL makes of a route is what Go makes of it.
func TestRoutesMeanTheSameInTheDatabase(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	routes := []outbox.Route{{"a_b*", "1"}, {"100%", "2"}, {"it's*!", "3"}, {`back\slash`, "1"}, {"*.end", "2"}, {"é*", "3"}, {"*x*y*", "1"}}
	topics := []string{"a_b", "axb", "a_bc", "100%", "1000", "it's!", "it's so!", "it's", `back\slash`, "back", "the.end", ".end", "xend", "élan", "xy", "axbyc", "yx", "A_B"}
	got := make(map[string][]string)
	var mu sync.Mutex
	router := &outbox.Router{Sinks: make(map[string]outbox.Sink), Routes: routes}
	for _, name := range []string{"1", "2", "3"} {
		router.Sinks[name] = script(func(_ context.Context, rows []outbox.Row) []error {
			mu.Lock()
			defer mu.Unlock()
			for _, row := range rows {
				got[row.Topic] = append(got[row.Topic], name)
			}
			return make([]error, len(rows))
		})
	}
	for _, topic := range topics {
		publish(t, db, topic, 1)
	}
	start(t, &outbox.Relay{DB: db, Sink: router}).settled(t, len(topics))
	byRelay := got
	got = make(map[string][]string)
	router.PublishBatch(t.Context(), rowsTo(topics...))
	if !reflect.DeepEqual(byRelay, got) {
		t.Errorf("the relay sends them to\n%v\nand not to\n%v", byRelay, got)
	}
}

func TestARouterCanBeUsedFromTwoGoroutines(t *testing.T) {
	t.Parallel()
	router := &outbox.Router{
		Sinks:  map[string]outbox.Sink{"a": newRecorder(nil), "b": script(away)},
		Routes: []outbox.Route{{"x", "a"}, {"y", "b"}},
	}
	var both sync.WaitGroup
	for range 2 {
		both.Go(func() {
			for range 200 {
				if errs := router.PublishBatch(t.Context(), rowsTo("x", "y")); errs[0] != nil || !errors.Is(errs[1], outbox.ErrUnavailable) {
					t.Error(errs)
				}
			}
		})
	}
	both.Wait()
}

// What is parked for one sink holds up what follows it of its key to that sink, and not what
// goes to another one.
func TestAParkedRowHoldsUpItsKeyInItsOwnSinkOnly(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	db := testenv.DB(t)
	picky := newRecorder(func(row outbox.Row) error {
		if string(row.Payload) == "bad" {
			return outbox.ErrRefused
		}
		return nil
	})
	other := newRecorder(nil)
	exec(t, db, `INSERT INTO oncemill.outbox (topic, ordering_key, payload) VALUES
		('a', 'k', 'first'), ('a', 'k', 'bad'), ('b', 'k', '1'), ('a', 'k', 'last'), ('nowhere', 'k', ''), ('b', 'k', '2')`)
	start(t, &outbox.Relay{DB: db, Sink: &outbox.Router{
		Sinks: map[string]outbox.Sink{"picky": picky, "other": other}, Routes: []outbox.Route{{"a", "picky"}, {"b", "other"}},
	}})
	poll(t, func() bool {
		return rowCount(t, db) == 3 && value[int](t, db, `SELECT count(*) FROM oncemill.outbox WHERE parked_at IS NOT NULL`) == 2
	})
	if got := ofKey(other.published(), "k"); !slices.Equal(got, []int{1, 2}) {
		t.Errorf("%v came to the other sink", got)
	}
	exec(t, db, `DELETE FROM oncemill.outbox WHERE parked_at IS NOT NULL`)
	poll(t, func() bool { return rowCount(t, db) == 0 })
	if rows := picky.published(); len(rows) != 2 || string(rows[1].Payload) != "last" {
		t.Errorf("%v came", rows)
	}
}

// Of many rows that are parked at a time the log names some, and counts the others.
func TestManyParkedRowsDoNotFloodTheLog(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	publish(t, db, "t", 300)
	logger, log := hearLog()
	start(t, &outbox.Relay{DB: db, Logger: logger, Sink: newRecorder(func(outbox.Row) error { return outbox.ErrRefused })}).settled(t, 300)
	if n := strings.Count(log(), "\n"); n > 40 || !strings.Contains(log(), "parked further messages") {
		t.Errorf("%d lines:\n%s", n, log())
	}
}
