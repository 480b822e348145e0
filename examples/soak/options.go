package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// options are the flags.
type options struct {
	duration time.Duration // of the soak
	capacity time.Duration // for how long the capacity is measured
	every    time.Duration // between two samples
	rate     float64       // messages a second; 0: share of the capacity
	csv, svg string        // files
}

const (
	// share of the capacity is what is sent.
	share = 0.7

	// leastSamples is two in each quarter.
	leastSamples = 8
)

func parse(args []string, out io.Writer) (o options, err error) {
	flags := flag.NewFlagSet("soak", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.DurationVar(&o.duration, "duration", 10*time.Minute, "for how long messages are sent; after an hour all tables have been judged")
	flags.DurationVar(&o.capacity, "capacity", 20*time.Second, "for how long the capacity is measured before, at least 2s")
	flags.DurationVar(&o.every, "every", 5*time.Second, "the time between two samples, at least 500ms")
	flags.Float64Var(&o.rate, "rate", 0, "messages a second, at least 1; 0: 70% of the capacity")
	flags.StringVar(&o.csv, "csv", "", "a file for the samples, a line each; empty: none")
	flags.StringVar(&o.svg, "svg", "", "a file for the chart, written at the end; empty: none")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	for flag, file := range map[string]string{"-csv": o.csv, "-svg": o.svg} { // an hour is too long to find that out
		if _, err := os.Stat(filepath.Dir(file)); err != nil {
			return o, fmt.Errorf("%s is %q: make the directory first: %w", flag, file, err)
		}
	}
	switch {
	case flags.NArg() > 0:
		return o, fmt.Errorf("%q is no flag; see -help", flags.Arg(0))
	case o.every < 500*time.Millisecond:
		return o, fmt.Errorf("-every is %v: must be at least 500ms, since a sample takes its time", o.every)
	case o.duration < leastSamples*o.every:
		return o, fmt.Errorf("-duration is %v: must be at least %d times -every, which is %v, for two samples in each quarter", o.duration, leastSamples, o.every)
	case o.rate == 0 && o.capacity < 2*time.Second:
		return o, fmt.Errorf("-capacity is %v: must be at least 2s; or set -rate", o.capacity)
	case o.rate != 0 && !(o.rate >= 1 && o.rate <= 100_000):
		return o, fmt.Errorf("-rate is %v: must be from 1 to 100000 messages a second, or 0 to measure the capacity", o.rate)
	}
	return o, nil
}
