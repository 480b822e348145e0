package main_test

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	main "github.com/oncemill/oncemill/examples/soak"
)

type values = map[string]func(seconds float64) float64

func constant(value float64) func(float64) float64 {
	return func(float64) float64 { return value }
}

// leaks grows by so much in an hour.
func leaks(from, hourly float64) func(float64) float64 {
	return func(seconds float64) float64 { return from + hourly*seconds/3600 }
}

func TestWhatGrowsIsSaid(t *testing.T) {
	t.Parallel()
	for name, value := range map[string]func(float64) float64{
		"worker_rss_mb":       leaks(50, 80),
		"relay_heap_mb":       leaks(2, 20),
		"guarded_goroutines":  leaks(60, 300),
		"claims_mb":           leaks(300, 400),
		"outbox_mb":           leaks(5, 60),
		"events_mb":           leaks(100, 200),
		"published_mb":        leaks(300, 400),
		"connections":         leaks(40, 60),
		"postgres_mb":         leaks(150, 200),
		"drift":               leaks(100, 5000),
		"undelivered":         leaks(100, 5000),
		"downstream_rss_mb":   leaks(50, 80),
		"producer_goroutines": leaks(83, 300),
	} {
		grows, _ := main.Judged(time.Hour, 1000, values{name: value})
		if !slices.Equal(grows, []string{name}) {
			t.Errorf("%s grows; said of %q", name, grows)
		}
	}
}

func TestWhatIsFlatIsNotSaidToGrow(t *testing.T) {
	t.Parallel()
	swings := func(seconds float64) float64 { return 100 + 90*math.Sin(seconds/20) } // as between two vacuums
	fills := func(seconds float64) float64 { return 400 * min(1, seconds/900) }      // until it is purged
	shrinks := leaks(500, -400)
	spike := func(seconds float64) float64 {
		if seconds > 3000 && seconds < 3200 {
			return 90_000
		}
		return 100
	}
	grows, early := main.Judged(time.Hour, 1000, values{
		"worker_rss_mb": constant(60), "outbox_mb": swings, "claims_mb": fills, "published_mb": shrinks,
		"drift": spike, "relay_goroutines": swings, "connections": constant(40),
		"sent": leaks(0, 1e7), "nats_rss_mb": leaks(50, 500), "claims_dead": leaks(0, 1e6), // which are only shown
	})
	if len(grows) > 0 || len(early) > 0 {
		t.Errorf("said to grow: %q; too early: %q", grows, early)
	}
}

// A table of what is kept for ten minutes cannot be flat before.
func TestWhatStillFillsIsNotJudged(t *testing.T) {
	t.Parallel()
	growing := values{"claims_mb": leaks(0, 900), "published_mb": leaks(0, 900), "worker_rss_mb": leaks(20, 900)}
	grows, early := main.Judged(20*time.Minute, 1000, growing)
	if !slices.Equal(grows, []string{"worker_rss_mb"}) || !slices.Equal(early, []string{"claims_mb", "events_mb", "published_mb"}) {
		t.Errorf("said to grow: %q; too early: %q", grows, early)
	}
	if grows, early = main.Judged(30*time.Second, 1000, growing); len(grows) > 0 || !slices.Contains(early, "worker_rss_mb") {
		t.Errorf("after 30 seconds, said to grow: %q; too early: %q", grows, early)
	}
	if got := main.Growth(20*time.Minute, growing, "claims_mb", "outbox_mb"); got != "early" {
		t.Errorf("the tables' growth is %s", got)
	}
}

// Growth is that of all processes together, of the second quarter to the last.
func TestGrowthIsARatioOfSums(t *testing.T) {
	t.Parallel()
	step := func(seconds float64) float64 {
		if seconds > 2000 {
			return 40
		}
		return 20
	}
	got := main.Growth(time.Hour, values{"worker_rss_mb": step, "relay_rss_mb": constant(60)}, "_rss_mb")
	if got != "1.25" {
		t.Errorf("got %s, want (40+60)/(20+60)", got)
	}
}

func TestWhatIsLostOrTwiceFailsTheRun(t *testing.T) {
	t.Parallel()
	if err := main.Sum(0, 0, 0); err != nil {
		t.Errorf("nothing is wrong: %v", err)
	}
	for _, wrong := range [][3]int64{{1, 0, 0}, {0, 1, 0}, {0, 0, 1}} {
		if main.Sum(wrong[0], wrong[1], wrong[2]) == nil {
			t.Errorf("lost, twice and dead letters %v: want an error", wrong)
		}
	}
}

func TestTheChartIsXML(t *testing.T) {
	t.Parallel()
	chart := main.Draw(time.Hour, values{"rate": constant(1000), "drift": leaks(100, 5000), "claims_mb": leaks(0, 300)})
	decoder := xml.NewDecoder(strings.NewReader(chart))
	for {
		if _, err := decoder.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if len(chart) > 100_000 {
		t.Errorf("the chart of an hour has %d bytes", len(chart))
	}
	for _, want := range []string{"2 cores &amp; more", "60 minutes", "goroutines", "published", "polyline"} {
		if !strings.Contains(chart, want) {
			t.Errorf("there is no %q in it", want)
		}
	}
}
