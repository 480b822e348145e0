package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/oncemill/oncemill/examples/internal/screen"
)

// What the conductor itself does to the processes.
const (
	workerKilled = "worker killed"
	relayKilled  = "relay killed"
)

// A kind is a kind of faults.
type kind struct{ name, short, long string }

// kinds are all of them, in the order of the report.
func (b *brand) kinds() []kind {
	return []kind{
		b.lost,
		{saysError, "errors", "handlers that returned an error"},
		{saysPanic, "panics", "handlers that panicked"},
		{workerKilled, "workers killed", b.killed},
		{relayKilled, "relays killed", "relays killed after they had published"},
	}
}

const (
	leastFaults = 5 // of each kind, or the demo has not shown enough

	// shownFaults of a kind have a line of their own. All kills do.
	shownFaults = 5
)

// fault notes and shows that something went wrong.
func (r *run) fault(kind, role string) {
	r.faults[kind]++
	r.crew.Changed()
	switch n := r.faults[kind]; {
	case kind == workerKilled, kind == relayKilled:
		r.screen.Line(fmt.Sprintf("fault: %s: killed with SIGKILL (%d)", role, r.killed[role]))
	case n < shownFaults:
		r.screen.Line(fmt.Sprintf("fault: %s: %s (%d)", role, kind, n))
	case n == shownFaults:
		r.screen.Line(fmt.Sprintf("fault: %s: %s (%d; more are only counted)", role, kind, n))
	}
}

// troubles is how much has gone wrong so far.
func (r *run) troubles() (n int) {
	for _, times := range r.faults {
		n += times
	}
	return n
}

// report prints the two runs side by side. An error means that the demo does not
// show what it is there to show.
func report(out io.Writer, with, without *run) error {
	fmt.Fprintln(out)
	printTable(out, with, without)
	v, plain := with.verdict, without.verdict
	fmt.Fprintf(out, `
There were %s deliveries more than orders: no broker does without them when
things go wrong. Without Oncemill that made %s bills and %s shipments too
many%s. With it %s.

`, screen.Thousands(v.Duplicates), screen.Thousands(plain.Billing.Twice), screen.Thousands(plain.Shipping.Twice), loss(plain), outcome(v))
	fmt.Fprintf(out, "demo: broker=%s published=%d deliveries=%d duplicates=%d effects=%d lost=%d twice=%d\n",
		with.setting.Broker, v.Published, v.Deliveries, v.Duplicates, v.Billing.Rows, v.lost(), v.twice())
	return judge(with, without)
}

func loss(v verdict) string {
	if v.lost() == 0 {
		return ""
	}
	return fmt.Sprintf(", and %s were missing", screen.Thousands(v.lost()))
}

func outcome(v verdict) string {
	if v.lost()+v.twice() > 0 {
		return fmt.Sprintf("%s were missing and %s too many: that is a bug", screen.Thousands(v.lost()), screen.Thousands(v.twice()))
	}
	return "every order was billed once and shipped once"
}

func printTable(out io.Writer, with, without *run) {
	print := func(what, one, other string) { fmt.Fprintf(out, "  %-50s %13s %10s\n", what, one, other) }
	head := func(what string) { fmt.Fprintln(out, what) }
	row := func(what string, value func(*run) int) {
		print(what, screen.Thousands(value(with)), screen.Thousands(value(without)))
	}

	print("", with.name, "without")
	head("what went wrong")
	for _, kind := range with.brand().kinds() {
		print(kind.long, with.suffered(kind.name), without.suffered(kind.name))
	}
	deliveries := func() {
		row("deliveries of orders to billing", func(r *run) int { return r.verdict.Deliveries })
		row("duplicates among these", func(r *run) int { return r.verdict.Duplicates })
	}
	head("what the broker says")
	row("orders published", func(r *run) int { return r.verdict.Published })
	if with.brand().counts {
		deliveries()
	}
	row("invoices published", func(r *run) int { return r.verdict.Invoices })
	if !with.brand().counts {
		head("what the workers noted, since " + with.brand().title + " keeps no count")
		deliveries()
	}
	head("what Postgres says")
	row("bills", func(r *run) int { return r.verdict.Billing.Rows })
	row("orders without a bill", func(r *run) int { return r.verdict.Billing.Lost })
	row("bills too many", func(r *run) int { return r.verdict.Billing.Twice })
	row("shipments", func(r *run) int { return r.verdict.Shipping.Rows })
	row("orders without a shipment", func(r *run) int { return r.verdict.Shipping.Lost })
	row("shipments too many", func(r *run) int { return r.verdict.Shipping.Twice })
	head("how long it took")
	print("seconds", fmt.Sprintf("%.1f", with.took.Seconds()), fmt.Sprintf("%.1f", without.took.Seconds()))
}

// suffered is how often a kind of fault happened, or that it could not.
func (r *run) suffered(kind string) string {
	if kind == relayKilled && !r.setting.Oncemill {
		return "no relay"
	}
	return screen.Thousands(r.faults[kind])
}

// judge tells whether the demo has shown what it should.
func judge(with, without *run) error {
	v, messages := with.verdict, with.setting.Messages
	switch {
	case v.lost() > 0 || v.twice() > 0:
		return errors.New("effects were lost or happened twice with Oncemill")
	case v.Published != messages || v.Billing.Rows != messages || v.Shipping.Rows != messages:
		return fmt.Errorf("%d orders were to be sent, but the auditor found others", messages)
	case without.verdict.lost()+without.verdict.twice() == 0:
		return errors.New("the run without Oncemill came out right as well: too little went wrong")
	}
	for _, r := range []*run{with, without} {
		for _, kind := range r.brand().kinds() {
			if kind.name == relayKilled && !r.setting.Oncemill {
				continue // it has none
			}
			if n := r.faults[kind.name]; n < leastFaults {
				return fmt.Errorf("%s there were only %d %s, less than %d", r.name, n, kind.short, leastFaults)
			}
		}
	}
	return nil
}
