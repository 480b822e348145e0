package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/oncemill/oncemill/examples/internal/stats"
)

// A finding compares a column's median in the last quarter of the run with that in the
// second. The first quarter is left out: caches fill in it, and pools.
type finding struct {
	column
	second, last float64
	slack        float64
	grows        bool // by more than a fifth and the slack
	early        bool // the second quarter begins while it fills
}

// ratio is how large the last quarter is beside the second, 1 where there is nothing.
func (f finding) ratio() float64 {
	if f.second == f.last {
		return 1
	}
	return f.last / math.Max(f.second, 1)
}

const mostGrowth = 1.2

// judge compares all columns that must be flat. What is under way is as much as the rate
// allows: a second's messages are the slack of the drifts.
func judge(s *samples, duration time.Duration, rate float64) (all []finding) {
	for _, c := range columns {
		if c.slack == 0 {
			continue
		}
		f := finding{column: c, slack: c.slack, early: duration/4 < max(c.fills, warmUp)}
		if f.slack == aSecond {
			f.slack = rate
		}
		f.second, f.last = quarter(s, c.name, duration, 1), quarter(s, c.name, duration, 3)
		f.grows = !f.early && f.last > mostGrowth*f.second+f.slack
		all = append(all, f)
	}
	return all
}

// quarter is a column's median in the n-th quarter, from 0.
func quarter(s *samples, name string, duration time.Duration, n float64) float64 {
	var values []float64
	length := duration.Seconds() / 4
	for _, one := range s.all {
		if at := one.of("seconds"); at >= n*length && (at < (n+1)*length || n == 3) {
			values = append(values, one.of(name))
		}
	}
	return stats.Median(values)
}

// growth is the ratio of all findings together whose names end in some way; "early" if it
// is too early to say.
func growth(all []finding, suffixes ...string) string {
	var f finding
	for _, one := range all {
		if slices.ContainsFunc(suffixes, func(suffix string) bool { return strings.HasSuffix(one.name, suffix) }) {
			f.second, f.last, f.early = f.second+one.second, f.last+one.last, f.early || one.early
		}
	}
	if f.early {
		return "early"
	}
	return fmt.Sprintf("%.2f", f.ratio())
}

// judgesAll is for how long a run has to go on to have everything judged.
func judgesAll() time.Duration {
	longest := warmUp
	for _, c := range columns {
		longest = max(longest, c.fills)
	}
	return 4 * longest
}
