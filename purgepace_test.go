package oncemill_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
)

func TestAPurgeTakesLittleFromTheLoadUnlessItIsFarBehind(t *testing.T) {
	t.Parallel()
	const took, week = 10 * time.Millisecond, 7 * 24 * time.Hour
	for _, c := range []struct {
		what         string
		span, behind time.Duration
		want         time.Duration
	}{
		{"little is due: a tenth of the time", time.Second, time.Minute, 90 * time.Millisecond},
		{"a burst long ago: the same", 0, time.Minute, 90 * time.Millisecond},
		{"far behind, few claims: the same", time.Minute, 24 * time.Hour, 90 * time.Millisecond},
		{"far behind: twice as fast as they were made", 100 * time.Millisecond, 24 * time.Hour, 40 * time.Millisecond},
		{"far behind, many claims: half of the time", 0, 24 * time.Hour, took},
	} {
		if got := oncemill.PurgePause(took, c.span, c.behind, week); got != c.want {
			t.Errorf("%s: waits %v, want %v", c.what, got, c.want)
		}
	}
}

func TestAPurgeComesWhenAboutABatchIsDue(t *testing.T) {
	t.Parallel()
	for rate, want := range map[int]string{
		0:      "[1s 2s 4s 8s 16s 32s 1m0s 1m0s]",
		100:    "[1s 2s 4s 8s 10s 10s 10s 10s]",
		10_000: "[1s 1s 1s 1s 1s 1s 1s 1s]",
	} {
		if got := fmt.Sprint(oncemill.PurgeWaits(rate, 8)); got != want {
			t.Errorf("%d claims a second: waits %s, want %s", rate, got, want)
		}
	}
}
