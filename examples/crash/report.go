package main

import (
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/oncemill/oncemill/examples/internal/screen"
)

// shownAnomalies is how many of a kind are shown with their histories.
const shownAnomalies = 3

// report says what has happened and what was found, and returns how many anomalies there are.
func (r *run) report(out io.Writer) int {
	fmt.Fprintf(out, "\nWhat went wrong, %d times:\n", sum(r.faults))
	for _, kind := range slices.Sorted(maps.Keys(r.faults)) {
		fmt.Fprintf(out, "  %4d  %s\n", r.faults[kind], kind)
	}
	v := &r.verdict
	if !r.early {
		fmt.Fprintf(out, promises, screen.Thousands(v.messages), screen.Thousands(v.effects), screen.Thousands(v.arrivals),
			screen.Thousands(v.notes), screen.Thousands(v.guarded), screen.Thousands(v.happened), v.failed, v.inDoubt)
	}
	for _, group := range v.byKind() {
		for _, a := range group[:min(len(group), shownAnomalies)] {
			fmt.Fprintf(out, "\nanomaly: %s %s: %s\n%s", a.class, a.kind, a.what, a.history)
		}
		if more := len(group) - shownAnomalies; more > 0 {
			fmt.Fprintf(out, "\nand %d more of: %s %s\n", more, group[0].class, group[0].kind)
		}
	}
	fmt.Fprintf(out, "\nguarded: messages=%d happened=%d failed=%d in_doubt=%d\n", v.guarded, v.happened, v.failed, v.inDoubt)
	fmt.Fprintf(out, "crash: seed=%d faults=%d messages=%d effects=%d lost=%d twice=%d unexplained=%d\n",
		r.seed, sum(r.faults), v.messages, v.effects, v.count(lost), v.count(twice), v.count(unexplained))
	return len(v.found)
}

const promises = `
What came of it, by all ledgers:
  %s messages to workers with Once have %s effects
  %s messages have arrived downstream, %s of them in an order
  %s effects outside of Postgres: %s have happened once, %d will never, %d are in doubt and listed
`
