package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/oncemill/oncemill/examples/internal/screen"
)

// needed is how many kills and how many lost replies a run must have, or it has not
// shown enough.
func needed(messages int) int { return min(20, messages/20) }

// report says what was done and what came of it. An error means that the demo does not
// show what it is there to show.
func (r *run) report(out io.Writer) error {
	fmt.Fprintln(out)
	r.printDone(out)
	r.printFound(out)
	v := r.verdict
	for _, why := range v.Why {
		fmt.Fprintln(out, "  !", why)
	}
	r.printDoubts(out)
	r.printPlain(out)
	fmt.Fprintf(out, "effects: kind=%s messages=%d happened=%d failed=%d in_doubt=%d twice=%d unexplained=%d\n",
		r.setting.Kind, v.Orders, v.Happened, v.Failed, v.InDoubt, v.Twice, v.Unexplained)
	return r.judge()
}

// row prints a figure, if it is one.
func row(out io.Writer, what string, n int) {
	if n > 0 {
		fmt.Fprintf(out, "  %-58s %7s\n", what, screen.Thousands(n))
	}
}

func (r *run) printDone(out io.Writer) {
	v, kind := r.verdict, r.setting.kind()
	fmt.Fprintf(out, "what was done, in %.1f seconds\n", r.took.Seconds())
	row(out, "orders", v.Orders)
	row(out, "of these sent twice by their customer", messages(r.setting.Messages)-r.setting.Messages)
	for _, m := range kind.moments {
		row(out, "workers killed "+string(m), r.kills[m])
	}
	for _, f := range kind.faults {
		row(out, f.long, r.faults[f.says])
	}
	fmt.Fprintln(out, "what it took")
	row(out, "deliveries of orders to workers", r.flow.Deliveries)
	row(out, "claims, each for one attempt", v.Attempts)
	row(out, "settled by the resolver, which asked the provider", v.Resolved)
}

func (r *run) printFound(out io.Writer) {
	v, kind := r.verdict, r.setting.kind()
	fmt.Fprintln(out, "what the checker found in the provider's ledger and in Postgres")
	row(out, fmt.Sprintf("%s once, with one row and one receipt", kind.verb), v.Happened)
	row(out, "refused for good: failed, nothing in the ledger", v.Failed)
	row(out, "in doubt: parked, and listed for a person", v.InDoubt)
	row(out, fmt.Sprintf("  of these in fact %s", kind.verb), v.Sent)
	fmt.Fprintf(out, "  %-58s %7d\n  %-58s %7d\n", kind.verb+" twice", v.Twice, "unexplained", v.Unexplained)
}

// printDoubts shows the first claims in doubt, and how to resolve one.
func (r *run) printDoubts(out io.Writer) {
	v, kind := r.verdict, r.setting.kind()
	if len(v.Doubts) == 0 {
		return
	}
	fmt.Fprintf(out, "\nIn doubt are %s, the first %d of them:\n\n", screen.Thousands(v.InDoubt), len(v.Doubts))
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "KEY\tTOKEN\tATTEMPTS\tPROVIDER KEY\tREASON")
	for _, d := range v.Doubts {
		reason := []rune(d.Reason)
		fmt.Fprintf(table, "%s\t%d\t%d\t%s\t%s\n", d.Key, d.Token, d.Attempts, d.ProviderKey, string(reason[:min(len(reason), 70)]))
	}
	table.Flush()
	if kind.resolve != "" {
		fmt.Fprintf(out, "\n"+kind.resolve, v.Doubts[0].Key, v.Doubts[0].Token)
	}
}

// printPlain says what this was for.
func (r *run) printPlain(out io.Writer) {
	after := 0
	for _, m := range []moment{afterRequest, afterEffect, beforeSettle, whileSettling, beforeAck} {
		after += r.kills[m]
	}
	fmt.Fprintf(out, `
A plain handler, which does its work again whenever it does not know, would have met
%d lost replies, %d kills after its request and %d orders that came twice, each of them
a second %s.

`, r.faults[lostReply.says], after, messages(r.setting.Messages)-r.setting.Messages, r.setting.kind().unit)
}

// judge tells whether the demo has shown what it should.
func (r *run) judge() error {
	if err := r.verdict.broken(r.setting); err != nil {
		return err
	}
	least := needed(r.setting.Messages)
	if n := r.killed(); n < least {
		return fmt.Errorf("only %d workers were killed, less than %d", n, least)
	}
	if n := r.faults[lostReply.says]; n < least {
		return fmt.Errorf("only %d replies were lost, less than %d", n, least)
	}
	return nil
}
