package stats_test

import (
	"slices"
	"testing"
	"time"

	"github.com/oncemill/oncemill/examples/internal/stats"
)

func TestMedianAndPercentile(t *testing.T) {
	t.Parallel()
	if m := stats.Median([]float64{3, 1, 2}); m != 2 {
		t.Errorf("got the median %v", m)
	}
	if m := stats.Median([]float64{4, 1, 2, 3}); m != 2.5 {
		t.Errorf("got the median %v", m)
	}
	if m := stats.Median(nil); m != 0 {
		t.Errorf("got the median %v of nothing", m)
	}
	times := make([]time.Duration, 200)
	for i := range times {
		times[i] = time.Duration(i + 1)
	}
	slices.Reverse(times)
	if p := stats.Percentile99(times); p != 198 {
		t.Errorf("got %v of 1 to 200", p)
	}
	if p := stats.Percentile99([]time.Duration{7}); p != 7 {
		t.Errorf("got %v of 7", p)
	}
}
