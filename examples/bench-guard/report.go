package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/oncemill/oncemill/examples/internal/stats"
)

// A result is what was measured of a contender.
type result struct {
	name            string
	rates           []float64       // pairs a second, of each turn
	claims, settles []time.Duration // at half of the median rate
}

func report(out io.Writer, results []result) {
	fmt.Fprintln(out)
	table := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, "\tclaim + settle per second\tmedian\tat\tp99 claim\tp99 settle")
	for _, r := range results {
		rates := make([]string, len(r.rates))
		for i, rate := range r.rates {
			rates[i] = fmt.Sprintf("%.0f", rate)
		}
		m := stats.Median(r.rates)
		fmt.Fprintf(table, "%s\t%s\t%.0f\t%.0f\t%s\t%s\n", r.name, strings.Join(rates, "  "), m, m/2, ms(stats.Percentile99(r.claims)), ms(stats.Percentile99(r.settles)))
	}
	table.Flush()
	fmt.Fprintln(out)
	for _, other := range results[1:] {
		fmt.Fprintf(out, "ratio %s/%s %.2f\n", results[0].name, other.name, stats.Median(results[0].rates)/stats.Median(other.rates))
	}
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", d.Seconds()*1000) }
