package main

import (
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"
)

// kinds are the faults in the order in which the report has them.
var kinds = []struct{ said, is string }{
	{saidNoAck, "acknowledgements lost on the way to the broker"},
	{saidError, "handler errors, after the handler has written"},
	{saidPanic, "handler panics, after the handler has written"},
	{"worker killed", "workers killed with SIGKILL"},
	{saidToKill, "relays killed with SIGKILL, after publishing"},
}

const leastFaults = 5

// report prints the two runs side by side. An error means that the demo did not
// show what it is there to show.
func report(out io.Writer, with, without *run) error {
	fmt.Fprintln(out)
	table := tabwriter.NewWriter(out, 0, 0, 3, ' ', tabwriter.AlignRight)
	row := func(what string, value func(*run) any) {
		fmt.Fprintf(table, "%s\t%v\t%v\t\n", what, value(with), value(without))
	}
	fmt.Fprintf(table, "\twith Oncemill\twithout\t\n")
	row("orders published", func(r *run) any { return r.verdict.Published })
	for _, kind := range kinds {
		row(kind.is, func(r *run) any { return r.faults[kind.said] })
	}
	row("deliveries of orders", func(r *run) any { return r.verdict.Deliveries })
	row("of these duplicates", func(r *run) any { return r.verdict.Duplicates })
	row("bills written", func(r *run) any { return r.verdict.Billing.Rows })
	row("orders never billed", func(r *run) any { return r.verdict.Billing.Lost })
	row("bills too many", func(r *run) any { return r.verdict.Billing.Twice })
	row("shipments written", func(r *run) any { return r.verdict.Shipping.Rows })
	row("orders never shipped", func(r *run) any { return r.verdict.Shipping.Lost })
	row("shipments too many", func(r *run) any { return r.verdict.Shipping.Twice })
	row("seconds", func(r *run) any { return r.took.Round(100 * time.Millisecond).Seconds() })
	table.Flush()

	v := with.verdict
	fmt.Fprintf(out, `
The broker delivered %d of %d orders again. Without Oncemill that made %d
effects too many and %d too few; with it every order was billed once and
shipped once.

`, v.Duplicates, v.Published, without.verdict.twice(), without.verdict.lost())
	fmt.Fprintf(out, "demo: broker=nats published=%d deliveries=%d duplicates=%d effects=%d lost=%d twice=%d\n",
		v.Published, v.Deliveries, v.Duplicates, v.Effects, v.lost(), v.twice())
	return judge(with, without)
}

func judge(with, without *run) error {
	switch v := with.verdict; {
	case v.lost() > 0 || v.twice() > 0:
		return errors.New("orders were lost or handled twice with Oncemill")
	case v.Published != with.messages || v.Effects != with.messages || v.Shipping.Rows != with.messages:
		return fmt.Errorf("%d orders were sent, but the auditor found others", with.messages)
	case without.verdict.lost()+without.verdict.twice() == 0:
		return errors.New("the run without Oncemill shows no difference: too little went wrong")
	}
	for _, kind := range kinds {
		if with.faults[kind.said] < leastFaults {
			return fmt.Errorf("only %d %s, want %d", with.faults[kind.said], kind.is, leastFaults)
		}
		if kind.said != saidToKill && without.faults[kind.said] < leastFaults {
			return fmt.Errorf("without Oncemill only %d %s, want %d", without.faults[kind.said], kind.is, leastFaults)
		}
	}
	return nil
}
