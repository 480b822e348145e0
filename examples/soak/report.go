package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/oncemill/oncemill/examples/internal/screen"
)

// report says what was found. The error is what is wrong.
func (r *run) report(out io.Writer) error {
	findings := judge(r.samples, r.duration, r.rate)
	fmt.Fprintf(out, "\n%s\n", r.about)
	if r.capacity > 0 {
		fmt.Fprintf(out, "The capacity was %s messages a second.\n", screen.Thousands(int(r.capacity)))
	}
	fmt.Fprintf(out, reportText, r.duration, r.rate)
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "\tsecond quarter\tlast quarter\t\t")
	for _, f := range findings {
		fmt.Fprintf(table, "%s\t%.1f\t%.1f\t%s\t\n", f.name, f.second, f.last, f.word())
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if r.duration < judgesAll() {
		fmt.Fprintf(out, "\nEarly is what still fills in the second quarter, as what is kept for a time does until it is purged.\nA run of %v judges everything.\n", judgesAll())
	}
	return r.verdict(out, findings)
}

const reportText = `In %v, with %.0f messages a second, these are the medians. Something grows if that of the last
quarter is more than a fifth and some slack above that of the second:

`

func (f finding) word() string {
	switch {
	case f.early:
		return "early"
	case f.grows:
		return "GROWS"
	}
	return "flat"
}

// verdict writes the last line.
func (r *run) verdict(out io.Writer, findings []finding) error {
	var growing []string
	for _, f := range findings {
		if f.grows {
			growing = append(growing, f.name)
		}
	}
	fmt.Fprintf(out, "\nsoak: minutes=%.4g rate=%.0f messages=%d effects=%d lost=%d twice=%d in_doubt=%d dead_letters=%d rss_growth=%s heap_growth=%s goroutines_growth=%s tables_growth=%s drift_growth=%s grows=%s\n",
		r.duration.Minutes(), r.rate, r.sum.messages, r.sum.effects, r.sum.lost, r.sum.twice, r.sum.inDoubt, r.sum.dead,
		growth(findings, "_rss_mb"), growth(findings, "_heap_mb"), growth(findings, "_goroutines"),
		growth(findings, "claims_mb", "outbox_mb", "events_mb", "published_mb"), growth(findings, "drift"), orNone(growing))
	switch {
	case r.sum.lost > 0 || r.sum.twice > 0 || r.sum.dead > 0:
		return errLedger
	case len(growing) > 0:
		return fmt.Errorf("%w: %s", errGrows, strings.Join(growing, ", "))
	}
	return nil
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ",")
}
