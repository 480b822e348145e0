// Package stats has what benchmarks say of many turns, and of many times.
package stats

import (
	"slices"
	"time"
)

// Median is the middle one of some values, or halfway between the two in the middle. That
// of none is 0.
func Median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	if n == 0 {
		return 0
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// Percentile99 is the least time within which 99 of 100 were over. That of none is 0.
func Percentile99(times []time.Duration) time.Duration {
	if len(times) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(times))
	return sorted[(len(sorted)*99+99)/100-1]
}
