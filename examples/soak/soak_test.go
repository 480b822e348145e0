package main_test

import (
	"encoding/csv"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/oncemill/oncemill/examples/internal/demotest"
	main "github.com/oncemill/oncemill/examples/soak"
)

var lastLine = regexp.MustCompile(`^soak: minutes=\S+ rate=[1-9]\d* messages=([1-9]\d*) effects=(\d+) lost=0 twice=0 in_doubt=0 dead_letters=0 ` +
	`rss_growth=early heap_growth=early goroutines_growth=early tables_growth=early drift_growth=early grows=none$`)

// A short run measures the capacity, and each message has one effect and arrives once.
func TestSoak(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	lines, chart := filepath.Join(dir, "soak.csv"), filepath.Join(dir, "soak.svg")
	d := demotest.Start(t, nil, "-duration", "5s", "-capacity", "2s", "-every", "500ms", "-csv", lines, "-svg", chart)
	if err := d.Wait(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, d.Stdout.String(), d.Stderr.String())
	}
	found := lastLine.FindStringSubmatch(d.LastLine())
	if found == nil || found[1] != found[2] {
		t.Fatalf("the last line is %q", d.LastLine())
	}
	if !strings.Contains(d.Stdout.String(), "The capacity was ") {
		t.Errorf("the capacity is not stated:\n%s", d.Stdout.String())
	}
	checkSamples(t, lines)
	if text, err := os.ReadFile(chart); err != nil || !strings.HasSuffix(string(text), "</svg>\n") {
		t.Errorf("the chart is %.100q, %v", text, err)
	}
	d.LeavesNothing()
}

// checkSamples wants a line for each sample, with something in what there always is.
func checkSamples(t *testing.T, file string) {
	t.Helper()
	text, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer text.Close()
	rows, err := csv.NewReader(text).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) < 2 || !slices.Equal(rows[0], main.Columns()) {
		t.Fatalf("there are %d lines: %q", len(rows), rows)
	}
	last := rows[len(rows)-1]
	for i, name := range rows[0] {
		value, err := strconv.ParseFloat(last[i], 64)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		positive := slices.Contains([]string{"seconds", "sent", "effects", "arrivals", "p50_ms", "claims_mb", "outbox_mb", "events_mb", "published_mb", "connections"}, name) ||
			strings.HasSuffix(name, "_goroutines")
		if value < 0 || positive && value == 0 {
			t.Errorf("%s is %s", name, last[i])
		}
	}
}

// Ctrl-C in the middle ends all processes, and what was measured stays.
func TestInterruptedKeepsItsSamples(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "soak.csv")
	d := demotest.Start(t, nil, "-rate", "100", "-every", "500ms", "-csv", file)
	d.Await(" effects (")
	d.Signal(os.Interrupt)
	if code := d.ExitCode(); code != 130 {
		t.Errorf("interrupted: exit status %d, want 130\n%s", code, d.Stderr.String())
	}
	d.LeavesNothing()
	text, err := os.ReadFile(file)
	if err != nil || strings.Count(string(text), "\n") < 2 {
		t.Errorf("what is left is %q, %v", text, err)
	}
}

func TestArgumentsThatAreWrong(t *testing.T) {
	t.Parallel()
	for want, args := range map[string][]string{
		"-duration is 1s: must be at least":  {"-duration=1s"},
		"-every is 1ms: must be at least":    {"-every=1ms"},
		"-capacity is 1s: must be at least":  {"-capacity=1s"},
		"-rate is -3: must be from":          {"-rate=-3"},
		`-svg is "/nowhere/chart.svg": make`: {"-svg=/nowhere/chart.svg"},
		`-csv is "/nowhere/soak.csv": make`:  {"-csv=/nowhere/soak.csv"},
		`"now" is no flag`:                   {"now"},
		"flag provided but not defined: -xx": {"-xx=1"},
	} {
		if err := main.Parse(args); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", args, err, want)
		}
	}
	if err := main.Parse(nil); err != nil {
		t.Errorf("without arguments: %v", err)
	}
}
