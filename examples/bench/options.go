package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// options are the flags.
type options struct {
	turn    time.Duration // about how long one takes
	probe   time.Duration // the same of a turn that finds out how much there is to do, and the best settings
	repeats int           // turns of each contender
	batch   int           // messages in a transaction, for those with batches
	grown   int           // claims in the table of the contender grown
	pace    int           // messages a second, of those whose latency is measured
	quick   bool
	latency time.Duration // between the workers and Postgres
	only    []string      // names of contenders, or of ratios; nil: all
	svg     string        // file
	profile string        // file
}

func parse(args []string, out io.Writer) (o options, err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.BoolVar(&o.quick, "quick", false, "3 short turns, 2 million claims, and no random keys: 6 minutes")
	flags.DurationVar(&o.turn, "turn", 8*time.Second, "about how long a turn takes (with -quick 2.5s)")
	flags.IntVar(&o.repeats, "repeats", 5, "how many turns each contender gets (with -quick 3)")
	flags.IntVar(&o.batch, "batch", 128, "messages in a transaction, for those with batches")
	flags.IntVar(&o.grown, "grown", 10_000_000, "claims in the grown table (with -quick 2000000)")
	flags.IntVar(&o.pace, "pace", 200, "messages a second, where latency is measured")
	flags.DurationVar(&o.latency, "latency", 0, "added to each answer of Postgres to the workers, in whole milliseconds")
	only := flags.String("only", "", "contenders or ratios, separated by commas; empty: all")
	flags.StringVar(&o.svg, "svg", "", "where to write the chart; empty: nowhere")
	flags.StringVar(&o.profile, "cpuprofile", "", "where to write a CPU profile of the worker's last turn")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("%q is no flag; see -help", flags.Arg(0))
	}
	o.hurry(flags)
	if o.only, err = selected(*only); err != nil {
		return o, err
	}
	o.probe = min(o.turn/3, time.Second)
	return o, o.check()
}

// hurry sets what -quick makes smaller, unless it is set by a flag of its own.
func (o *options) hurry(flags *flag.FlagSet) {
	if !o.quick {
		return
	}
	given := make(map[string]string)
	flags.Visit(func(f *flag.Flag) { given[f.Name] = f.Value.String() })
	o.turn, o.repeats, o.grown = 2500*time.Millisecond, 3, 2_000_000
	for name, value := range given {
		_ = flags.Set(name, value) // it was accepted before
	}
}

func (o *options) check() error {
	switch {
	case o.turn <= 0 || o.repeats < 1 || o.batch < 1 || o.grown < 1 || o.pace < 1:
		return errors.New("-turn, -repeats, -batch, -grown and -pace must be positive")
	case o.batch > 1000:
		return fmt.Errorf("-batch is %d: must be at most 1000, for a statement's parameters", o.batch)
	case o.latency < 0 || o.latency%time.Millisecond != 0:
		return fmt.Errorf("-latency is %v: must be whole milliseconds, which is what toxiproxy counts in", o.latency)
	}
	return nil
}

// selected are the names of contenders that -only asks for, nil for all. A ratio is its
// two contenders.
func selected(only string) (names []string, err error) {
	if only == "" {
		return nil, nil
	}
	for _, name := range strings.Split(only, ",") {
		name = strings.TrimSpace(name)
		if r, found := ratioNamed(name); found {
			names = append(names, r.of, r.to)
		} else if slices.ContainsFunc(all(options{batch: 1}), func(c contender) bool { return c.name == name }) {
			names = append(names, name)
		} else {
			return nil, fmt.Errorf("-only: there is no %q: %s", name, strings.Join(everyName(), ", "))
		}
	}
	return names, nil
}

func (o *options) wants(c contender) bool {
	if o.only != nil {
		return slices.Contains(o.only, c.name)
	}
	return !o.quick || !c.thorough
}
