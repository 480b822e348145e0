package main

import (
	"context"
	"fmt"
	"slices"
)

// A contender is what is measured.
type contender struct {
	name  string
	about string
	group string // of the chart
	role  string // of its workers

	// Where its tables are: see database.go.
	database string

	// The settings of which the best is taken, in turns before those that count.
	choices []choice

	// The contender whose choice this one has too, since it is the same but for what is
	// around it.
	like string

	workers  int  // processes; 0: 1
	thorough bool // not with -quick
	most     int  // messages in a turn, for whoever has them all in memory; 0: any number
	random   bool // keys are in no order
	held     bool // another session has a snapshot all the time
	deep     bool // how fast it is depends on how much there is to do, so it is chosen in whole turns

	// prepare makes what there is to do, and check looks what has become of it.
	prepare func(ctx context.Context, s *stage, t *turn) error
	check   func(ctx context.Context, s *stage, t *turn) error

	// measure is for those who have another figure than how many messages a second.
	measure func(ctx context.Context, s *stage, t *turn) (float64, error)
}

// ours tells whether it is Oncemill that is measured.
func (c contender) ours() bool { return c.role == "once" || c.role == "relay" }

// A choice is one way in which a contender can be set.
type choice struct {
	about string
	set   func(*setting)
}

// Groups of the chart.
const (
	handling = "Messages handled a second"
	bare     = "The same SQL in a loop, without a broker: messages a second"
	relaying = "Messages relayed to JetStream a second"
	delays   = "From commit to delivery at a steady pace: milliseconds (p99; less is better)"
)

// all are the contenders, in the order of their turns.
func all(o options) []contender {
	batched := []choice{inBatches(o.batch)}
	return slices.Concat(cold(batched), contended(batched), crowded(batched), loops(batched), relays())
}

func cold(batched []choice) []contender {
	return []contender{
		{name: "once-batched", about: "Once with Batch: claim, effect, outbox", group: handling, role: "once", choices: batched,
			prepare: prepareMessages, check: checkOnce},
		{name: "plain-tx", about: "the same subscriber, a transaction of the handler's own", group: handling, role: "plain", choices: inFlight(8, 16, 32, 64, 128),
			prepare: prepareMessages, check: checkPlain},
		{name: "watermill-stock", about: "watermill-nats's subscriber, with that handler", group: handling, role: "stock", choices: acks(),
			prepare: prepareMessages, check: checkPlain},
		{name: "once-single", about: "Once, a transaction for each message", group: handling, role: "once", choices: inFlight(8, 16, 32, 64),
			prepare: prepareMessages, check: checkOnce},
	}
}

// contended are those whose transactions wait for each other's rows.
func contended(batched []choice) []contender {
	return []contender{
		{name: "once-batched-hot", about: "an UPDATE of one of 1,000 rows, 2 processes", group: handling, role: "once", choices: hot(batched), workers: 2,
			prepare: prepareMessages, check: checkOnceHot},
		{name: "plain-tx-hot", about: "the same work, a transaction for each message", group: handling, role: "plain", choices: hot(inFlight(4, 8, 16, 32)), workers: 2,
			prepare: prepareMessages, check: checkHot},
	}
}

// crowded are those whose claims are not alone in their table.
func crowded(batched []choice) []contender {
	return []contender{
		{name: "grown", about: "once-batched, with many claims in the table", group: handling, role: "once", choices: batched, like: "once-batched", database: grownDatabase,
			prepare: prepareMessages, check: checkOnce},
		{name: "grown-random", about: "the same, with random keys", group: handling, role: "once", choices: batched, like: "once-batched", database: randomDatabase,
			prepare: prepareMessages, check: checkOnce, thorough: true, random: true},
		{name: "purging", about: "once-batched, and as many old claims purged", group: handling, role: "once", choices: purging(batched), like: "once-batched",
			prepare: preparePurge, check: checkPurged},
	}
}

func loops(batched []choice) []contender {
	return []contender{
		{name: "shape", about: "once-batched's statements in a loop, no broker", group: bare, role: "shape", choices: batched,
			prepare: prepareTables, check: checkOnce},
		{name: "sql", about: "all as multi-row SQL", group: bare, role: "sql", choices: batched,
			prepare: prepareTables, check: checkOnce},
	}
}

func relays() []contender {
	return []contender{
		{name: "relay", about: "outbox to JetStream", group: relaying, role: "relay", choices: unchanged,
			prepare: prepareRows, check: checkRelayed},
		{name: "relay-held", about: "the same, while a session holds a snapshot", group: relaying, role: "relay", choices: unchanged, like: "relay", held: true,
			prepare: prepareRows, check: checkRelayed},
		{name: "forwarder", about: "watermill-sql's, to JetStream", group: relaying, role: "forwarder", choices: selects(100, 1000), deep: true,
			prepare: prepareForwarder, check: checkStream},
		{name: "publish", about: "bare asynchronous publish", group: relaying, role: "publish", choices: unchanged, most: 400_000,
			prepare: prepareStream, check: checkStream},
		{name: "relay-latency", about: "our relay, woken by NOTIFY", group: delays, role: "relay", measure: relayLatency},
		{name: "forwarder-latency", about: "watermill-sql's forwarder, with its defaults", group: delays, role: "forwarder", measure: forwarderLatency},
	}
}

// A ratio is a line of the report: of one contender to another.
type ratio struct{ name, of, to string }

// ratios are the lines, in their order.
var ratios = []ratio{
	{"once-batched/plain-tx", "once-batched", "plain-tx"},
	{"once-batched/watermill-stock", "once-batched", "watermill-stock"},
	{"once-batched-hot/plain-tx-hot", "once-batched-hot", "plain-tx-hot"},
	{"once-batched/shape", "once-batched", "shape"},
	{"once-batched/sql", "once-batched", "sql"},
	{"once-single/plain-tx", "once-single", "plain-tx"},
	{"relay/forwarder", "relay", "forwarder"},
	{"relay/limit", "relay", "publish"},
	{"relay-held/relay", "relay-held", "relay"},
	{"grown/empty", "grown", "once-batched"},
	{"grown-random/empty", "grown-random", "once-batched"},
	{"purging/idle", "purging", "once-batched"},
	{"latency-p99", "relay-latency", "forwarder-latency"},
}

func ratioNamed(name string) (r ratio, found bool) {
	for _, r := range ratios {
		if r.name == name {
			return r, true
		}
	}
	return r, false
}

func everyName() (names []string) {
	for _, c := range all(options{batch: 1}) {
		names = append(names, c.name)
	}
	for _, r := range ratios {
		names = append(names, r.name)
	}
	return names
}

// unchanged is for those who have nothing to choose.
var unchanged = []choice{{"defaults", func(*setting) {}}}

func inBatches(n int) choice {
	return choice{fmt.Sprintf("batches of %d", n), func(s *setting) { s.Batch, s.InFlight = n, 2*n }}
}

func inFlight(numbers ...int) (all []choice) {
	for _, n := range numbers {
		all = append(all, choice{fmt.Sprintf("%d in flight", n), func(s *setting) { s.InFlight = n }})
	}
	return all
}

func acks() []choice {
	return []choice{
		{"acks confirmed", func(s *setting) {}},
		{"acks not confirmed", func(s *setting) { s.AckAsync = true }},
	}
}

func selects(numbers ...int) (all []choice) {
	for _, n := range numbers {
		all = append(all, choice{fmt.Sprintf("%d rows a SELECT", n), func(s *setting) { s.Batch = n }})
	}
	return all
}

func hot(choices []choice) []choice {
	return with(choices, func(s *setting) { s.Hot = true })
}

func purging(choices []choice) []choice {
	return with(choices, func(s *setting) { s.Purge = true })
}

func with(choices []choice, more func(*setting)) (all []choice) {
	for _, c := range choices {
		all = append(all, choice{c.about, func(s *setting) { c.set(s); more(s) }})
	}
	return all
}
