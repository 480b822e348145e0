package main

import (
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/oncemill/oncemill/examples/internal/stats"
)

// A result is what was measured of a contender.
type result struct {
	contender
	choice  string
	samples []sample
}

// value is the median of its turns.
func (r result) value() float64 {
	var values []float64
	for _, s := range r.samples {
		values = append(values, s.value)
	}
	return stats.Median(values)
}

// again is how many deliveries failed and came again, in all turns.
func (r result) again() (n int) {
	for _, s := range r.samples {
		n += s.again
	}
	return n
}

// processors is how much of them a message took, in microseconds, in the median.
func (r result) processors(of func(usage) time.Duration) float64 {
	var values []float64
	for _, s := range r.samples {
		values = append(values, of(s.usage).Seconds()*1e6/float64(max(s.number, 1)))
	}
	return stats.Median(values)
}

// A setup is what everybody was measured on.
type setup struct{ machine, postgres, flush, latency string }

func write(out io.Writer, on setup, results []result) {
	fmt.Fprintf(out, "\n%s, %s; a write through to the disk takes %s%s\n\n", on.machine, on.postgres, on.flush, on.latency)
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "\tturns\tmedian\tworker\tPostgres\tNATS\tbest with\twhat it is")
	for _, r := range results {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", r.name, strings.Join(r.turns(), " "), r.format(r.value()), r.spent(), r.choice, r.about)
	}
	table.Flush()
	fmt.Fprint(out, legend)
	for _, r := range results {
		if n := r.again(); n > 0 {
			fmt.Fprintf(out, "%s: %d deliveries failed, and came again.\n", r.name, n)
		}
	}
	fmt.Fprintln(out)
	for _, line := range lines(results) {
		fmt.Fprintln(out, line)
	}
}

const legend = `
Turns and medians are messages a second, and where the name ends with latency,
milliseconds: the p99 from commit to delivery. Worker, Postgres and NATS are how much of
the processors each has used, in microseconds per message.
`

func (r result) turns() (all []string) {
	for _, s := range r.samples {
		all = append(all, r.format(s.value))
	}
	return all
}

func (r result) format(value float64) string {
	if r.measure != nil {
		return fmt.Sprintf("%.1f", value)
	}
	return fmt.Sprintf("%.0f", value)
}

func (r result) spent() string {
	if r.measure != nil {
		return "\t\t"
	}
	return fmt.Sprintf("%.1f\t%.1f\t%.1f",
		r.processors(func(u usage) time.Duration { return u.worker }),
		r.processors(func(u usage) time.Duration { return u.postgres }),
		r.processors(func(u usage) time.Duration { return u.nats }))
}

// lines are the ratios of those that were measured.
func lines(results []result) (all []string) {
	for _, q := range ratios {
		of, to := resultOf(q.of, results), resultOf(q.to, results)
		if of != nil && to != nil && to.value() > 0 {
			all = append(all, fmt.Sprintf("ratio %s %.3f", q.name, of.value()/to.value()))
		}
	}
	return all
}

func resultOf(name string, results []result) *result {
	i := slices.IndexFunc(results, func(r result) bool { return r.name == name })
	if i < 0 {
		return nil
	}
	return &results[i]
}

func machine() string {
	return fmt.Sprintf("%d cores, %s/%s, %s", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version())
}
