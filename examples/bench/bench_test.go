package main_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	main "github.com/oncemill/oncemill/examples/bench"
	"github.com/oncemill/oncemill/examples/internal/demotest"
)

// All contenders work, and what they leave is right: the program ends with its lines, and
// leaves no process and no file.
func TestBench(t *testing.T) {
	t.Parallel()
	d := demotest.Start(t, nil, "-turn", "100ms", "-repeats", "1", "-grown", "5000", "-batch", "32", "-latency", "1ms", "-svg", "chart.svg")
	t.Cleanup(func() { os.Remove("chart.svg") })
	if err := d.Wait(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, d.Stdout.String(), d.Stderr.String())
	}
	names, _ := main.Names()
	found := regexp.MustCompile(`(?m)^ratio (\S+) \d+\.\d{3}$`).FindAllStringSubmatch(d.Stdout.String(), -1)
	for i, name := range names {
		if i >= len(found) || found[i][1] != name {
			t.Fatalf("there is no line for %s, in its place:\n%s", name, d.Stdout.String())
		}
	}
	chart, err := os.ReadFile("chart.svg")
	if err != nil {
		t.Fatal(err)
	}
	wantXML(t, string(chart))
	d.LeavesNothing()
}

func TestTheLinesAreThoseThatWereAskedFor(t *testing.T) {
	t.Parallel()
	names, contenders := main.Names()
	want := []string{
		"once-batched/plain-tx", "once-batched/watermill-stock", "once-batched-hot/plain-tx-hot", "once-batched/shape", "once-batched/sql",
		"once-single/plain-tx", "relay/forwarder", "relay/limit", "relay-held/relay", "grown/empty", "grown-random/empty", "purging/idle", "latency-p99",
	}
	if !slices.Equal(names, want) {
		t.Errorf("got %q", names)
	}
	o, err := main.Parse()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range contenders {
		if !slices.Contains(o.Wanted(), c) {
			t.Errorf("there is no contender %s", c)
		}
	}
}

// A ratio is that of the medians, and there only if both were measured.
func TestRatios(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	main.Write(&out, main.Results(map[string][]float64{
		"once-batched": {300, 900, 600}, "plain-tx": {100, 50, 200}, "relay": {10}, "relay-latency": {3}, "forwarder-latency": {1000},
	}))
	_, lines, _ := strings.Cut(out.String(), "\nratio ")
	if want := "once-batched/plain-tx 6.000\nratio latency-p99 0.003\n"; lines != want {
		t.Errorf("got\n%s", out.String())
	}
	for _, want := range []string{"300 900 600", "10.0", "once-batched", "some <settings>"} { // 10 ms for 1,000 messages
		if !strings.Contains(out.String(), want) {
			t.Errorf("there is no %q in\n%s", want, out.String())
		}
	}
}

func TestFlags(t *testing.T) {
	t.Parallel()
	quick, err := main.Parse("-quick")
	if err != nil || quick.Turn() != 2500*time.Millisecond || quick.Repeats() != 3 || quick.Grown() != 2_000_000 {
		t.Errorf("got %+v, %v", quick, err)
	}
	if slices.Contains(quick.Wanted(), "grown-random") {
		t.Error("there are random keys with -quick")
	}
	full, err := main.Parse()
	if err != nil || full.Grown() != 10_000_000 || !slices.Contains(full.Wanted(), "grown-random") {
		t.Errorf("got %+v, %v", full, err)
	}
	// What is said counts, in whatever order.
	for _, args := range [][]string{{"-quick", "-turn", "1s", "-grown", "7"}, {"-grown", "7", "-turn", "1s", "-quick"}} {
		if o, err := main.Parse(args...); err != nil || o.Turn() != time.Second || o.Grown() != 7 || o.Repeats() != 3 {
			t.Errorf("%q: got %+v, %v", args, o, err)
		}
	}
	only, err := main.Parse("-only", "grown/empty, plain-tx", "-quick")
	if want := []string{"once-batched", "plain-tx", "grown"}; err != nil || !slices.Equal(only.Wanted(), want) {
		t.Errorf("got %q, %v", only.Wanted(), err)
	}
}

func TestWrongFlagsAreNamed(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"-only nothing":      `no "nothing": once-batched`,
		"-latency 1500us":    "whole milliseconds",
		"-latency -1ms":      "-latency",
		"-repeats 0":         "-repeats",
		"-batch 1001":        "-batch",
		"once-batched":       `"once-batched" is no flag`,
		"-grown 0":           "-grown",
		"-turn 0s":           "-turn",
		"-pace 0":            "-pace",
		"-quick -repeats -1": "-repeats",
	} {
		if _, err := main.Parse(strings.Fields(args)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", args, err)
		}
	}
}

// The chart is XML whatever stands in it, and has a bar for each contender.
func TestChart(t *testing.T) {
	t.Parallel()
	for _, values := range []map[string][]float64{
		nil,
		{"once-batched": {0}},
		{"once-batched": {300, 900, 600}, "plain-tx": {100}, "shape": {5}, "relay": {10}, "relay-latency": {3}, "forwarder-latency": {1000}},
	} {
		chart := main.Draw(main.Results(values))
		if bars := wantXML(t, chart); bars != len(values)+1 { // and the background
			t.Errorf("there are %d rectangles for %d contenders:\n%s", bars, len(values), chart)
		}
	}
}

func wantXML(t *testing.T, chart string) (rectangles int) {
	t.Helper()
	for decoder := xml.NewDecoder(strings.NewReader(chart)); ; {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return rectangles
		}
		if err != nil {
			t.Fatalf("the chart is no XML: %v\n%s", err, chart)
		}
		if start, ok := token.(xml.StartElement); ok && start.Name.Local == "rect" {
			rectangles++
		}
	}
}

// Two processes work from when the first of them begins until the last is done.
func TestReportsAreAddedUp(t *testing.T) {
	t.Parallel()
	done, took, busy, err := main.Sum(`{"Done":3,"First":100,"Last":500}`, `{"Done":4,"First":150,"Last":900,"Busy":true}`, `{}`)
	if err != nil || done != 7 || took != 800 || !busy {
		t.Errorf("got %d, %v, %v, %v", done, took, busy, err)
	}
	if _, _, _, err := main.Sum("kill me"); err == nil {
		t.Error("a line that is no report is one")
	}
}

// A program may be named so that it looks like more fields.
func TestProcessorTimeIsRead(t *testing.T) {
	t.Parallel()
	const text = "4242 (postgres: a) R 7 (b)) S 77 1 1 0 -1 4194560 9 8 7 6 150 50 1000 200 20 0 1 0 12345 1 1"
	parent, own, children, err := main.ReadStat(text)
	if err != nil || parent != 77 || own != 2*time.Second || children != 12*time.Second {
		t.Errorf("got %d, %v, %v, %v", parent, own, children, err)
	}
	for _, wrong := range []string{"", "1 (a) S 1", "1 (a) S x 1 1 0 -1 1 1 1 1 1 1 1 1 1 1 1"} {
		if _, _, _, err := main.ReadStat(wrong); err == nil {
			t.Errorf("%q is read", wrong)
		}
	}
}
