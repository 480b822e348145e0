package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/oncemill/oncemill"
)

// fine are facts in which nothing is wrong: one of everything.
func fine() *facts {
	return &facts{
		sent:    map[string][]string{single: {"s"}, batch: {"b"}, charges: {"c"}, mails: {"m"}},
		calls:   []string{"call"},
		old:     []string{"old-0"},
		effects: map[claimKey][]string{{single, "s"}: {"child-s"}, {batch, "b"}: {"child-b"}, {batch, "old-0"}: {""}},
		claims: map[claimKey]claim{
			{single, "s"}: {oncemill.Settled}, {batch, "b"}: {oncemill.Settled}, {charges, "c"}: {oncemill.Settled},
			{mails, "m"}: {}, {guardConsumer, "call"}: {oncemill.Failed},
		},
		arrivals: map[string]map[string]int{
			childrenA: {"child-s": 1, "child-b": 1}, childrenB: {"child-s": 1, "child-b": 1}, receipts: {"child-c": 1}, ordered: {"n1": 1, "n2": 1},
		},
		notes:       []note{{"k", 1, "n1"}, {"k", 2, "n2"}},
		settlements: map[claimKey][]settlement{{charges, "c"}: {{"receipt", "child-c"}}},
		doubts:      map[claimKey]oncemill.InDoubt{{mails, "m"}: {Message: &oncemill.ParkedMessage{}}},
		ledger:      map[claimKey][]entry{{charges, "c"}: {{Receipt: "receipt"}}, {guardConsumer, "call"}: {{Receipt: ""}}},
		order:       []delivered{{uuid: "n1"}, {uuid: "n2"}, {uuid: "n1"}}, // one of them again
		dead:        []delivered{{uuid: "old-0"}},
	}
}

func TestTheCheckerFindsNothingWhereNothingIsWrong(t *testing.T) {
	v := fine().judge()
	for _, a := range v.found {
		t.Errorf("%s %s: %s", a.class, a.kind, a.what)
	}
	if v.messages != 2 || v.effects != 2 || v.arrivals != 7 || v.guarded != 3 || v.happened != 1 || v.failed != 1 || v.inDoubt != 1 {
		t.Errorf("counted %+v", v)
	}
}

// A checker that cannot fail proves nothing.
func TestTheCheckerFinds(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(f *facts)
		class class
		kind  string
		says  string
	}{
		{"a message without effect", func(f *facts) {
			delete(f.effects, claimKey{batch, "b"})
			delete(f.claims, claimKey{batch, "b"})
			delete(f.arrivals[childrenA], "child-b")
			delete(f.arrivals[childrenB], "child-b")
		}, lost, "effects", "b was published"},
		{"a claim without effect", func(f *facts) {
			delete(f.effects, claimKey{batch, "b"})
			delete(f.arrivals[childrenA], "child-b")
			delete(f.arrivals[childrenB], "child-b")
		}, lost, "effects", "b has a claim"},
		{"a message that was given up", func(f *facts) {
			delete(f.effects, claimKey{batch, "b"})
			delete(f.arrivals[childrenA], "child-b")
			delete(f.arrivals[childrenB], "child-b")
			f.dead = append(f.dead, delivered{uuid: "b"})
		}, lost, "effects", "dead letter"},
		{"an effect that happened twice", func(f *facts) {
			f.effects[claimKey{single, "s"}] = []string{"child-s", "child-t"}
			f.arrivals[childrenA]["child-t"], f.arrivals[childrenB]["child-t"] = 1, 1
		}, twice, "effects", "2 effects"},
		{"an old effect that happened again", func(f *facts) { f.effects[claimKey{batch, "old-0"}] = []string{"", ""} }, twice, "effects", "from long before"},
		{"an effect without claim", func(f *facts) { delete(f.claims, claimKey{single, "s"}) }, unexplained, "claims", "no claim"},
		{"an effect of nothing", func(f *facts) { f.effects[claimKey{single, "x"}] = []string{""} }, unexplained, "effects", "was not sent"},
		{"a child that is lost", func(f *facts) { delete(f.arrivals[childrenB], "child-s") }, lost, "arrivals", "has not arrived from children-b"},
		{"a child that came twice", func(f *facts) { f.arrivals[childrenA]["child-s"] = 2 }, twice, "arrivals", "2 times"},
		{"a child of a run that was rolled back", func(f *facts) { f.arrivals[childrenA]["ghost"] = 1 }, unexplained, "arrivals", "nobody's child"},
		{"an order that is not kept", func(f *facts) { f.order[0], f.order[1] = f.order[1], f.order[0] }, unexplained, "order", "overtaken"},
		{"a message that was not committed", func(f *facts) { f.order = append(f.order, delivered{uuid: "ghost"}) }, unexplained, "order", "not committed"},
		{"a mail that was sent twice", func(f *facts) { f.ledger[claimKey{mails, "m"}] = []entry{{Receipt: "1"}, {Receipt: "2"}} }, twice, "guarded", "2 times"},
		{"a charge that was settled twice", func(f *facts) {
			f.settlements[claimKey{charges, "c"}] = []settlement{{"receipt", "child-c"}, {"receipt", "child-d"}}
			f.arrivals[receipts]["child-d"] = 1
		}, twice, "settlements", "2 times"},
		{"a charge that is settled and was not made", func(f *facts) { delete(f.ledger, claimKey{charges, "c"}) }, unexplained, "guarded", "not in the provider's ledger"},
		{"a call that failed and was made", func(f *facts) { f.ledger[claimKey{guardConsumer, "call"}] = []entry{{Receipt: "1"}} }, unexplained, "guarded", "has failed, and"},
		{"a mail that nobody has claimed", func(f *facts) { delete(f.claims, claimKey{mails, "m"}) }, lost, "guarded", "never claimed"},
		{"a charge without claim", func(f *facts) { delete(f.claims, claimKey{charges, "c"}) }, unexplained, "guarded", "has no claim, and is in"},
		{"a doubt that is not listed", func(f *facts) { delete(f.doubts, claimKey{mails, "m"}) }, unexplained, "guarded", "not listed"},
		{"a message that is not parked", func(f *facts) { f.doubts[claimKey{mails, "m"}] = oncemill.InDoubt{} }, unexplained, "guarded", "not parked"},
		{"an effect that nobody wanted", func(f *facts) { f.ledger[claimKey{mails, "x"}] = []entry{{Receipt: "1"}} }, unexplained, "guarded", "not wanted"},
		{"a token that was used twice", func(f *facts) {
			f.standing = []anomaly{{class: unexplained, kind: "tokens", what: "twice", keys: []string{"m"}}}
		}, unexplained, "tokens", "twice"},
		{"a row that is left", func(f *facts) { f.rows = []string{"x"} }, unexplained, "outbox", "left"},
		{"a dead letter", func(f *facts) { f.dead = append(f.dead, delivered{uuid: "m"}) }, unexplained, "dead letters", "m is"},
		{"a deadlock", func(f *facts) { f.deadlocks = 1 }, unexplained, "deadlock", "1 deadlocks"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := fine()
			c.spoil(f)
			v := f.judge()
			if !slices.ContainsFunc(v.found, func(a anomaly) bool {
				return a.class == c.class && a.kind == c.kind && strings.Contains(a.what, c.says)
			}) {
				t.Errorf("found %+v", v.found)
			}
			if len(v.found) != 1 { // nothing else follows from it
				t.Errorf("%d were found, want 1: %+v", len(v.found), v.found)
			}
		})
	}
}

func TestAHistoryHasTheFaultsOfItsTime(t *testing.T) {
	lines := map[string][]string{
		"a":        {"10:00:05.000000 a worker: runs", "10:00:03.000000 a producer: published"},
		"b":        {"10:00:09.000000 b worker: runs"},
		nemesisKey: {"10:00:02.000000 - fault 1" + fromOn + "10:00:01.000000", "10:00:06.000000 - fault 2" + fromOn + "10:00:04.000000", "10:00:09.000000 - fault 3" + fromOn + "10:00:08.000000"},
	}
	want := "  10:00:03.000000 a producer: published\n  10:00:05.000000 a worker: runs\n  10:00:06.000000 - fault 2, from on 10:00:04.000000\n"
	if got := history([]string{"a"}, lines); got != want {
		t.Errorf("the history is\n%swant\n%s", got, want)
	}
}
