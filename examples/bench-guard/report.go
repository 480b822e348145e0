package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
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
		m := median(r.rates)
		fmt.Fprintf(table, "%s\t%s\t%.0f\t%.0f\t%s\t%s\n", r.name, strings.Join(rates, "  "), m, m/2, ms(p99(r.claims)), ms(p99(r.settles)))
	}
	table.Flush()
	fmt.Fprintln(out)
	for _, other := range results[1:] {
		fmt.Fprintf(out, "ratio %s/%s %.2f\n", results[0].name, other.name, median(results[0].rates)/median(other.rates))
	}
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", d.Seconds()*1000) }

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// p99 is the least time within which 99 of 100 were done.
func p99(times []time.Duration) time.Duration {
	if len(times) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(times))
	return sorted[(len(sorted)*99+99)/100-1]
}
