// Bench-guard measures `oncemill guard` beside the server that it replaces, SafeAgent,
// and beside what Postgres can do at all, on this machine:
//
//	bench-guard -duration 5s -callers 16 -repeats 3
//
// It starts everything that it measures, on the loopback interface and with files in one
// temporary directory, so that they write to the same disk, through to it. The contenders
// take turns. After each turn it counts what is in the contender's tables, and a turn that
// has not claimed and settled each of its ids once fails the run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/oncemill/oncemill/examples/internal/stats"
)

// options are the flags.
type options struct {
	duration time.Duration // of a turn
	callers  int           // at a time
	repeats  int           // turns of each contender
}

// A contender is what is measured.
type contender struct {
	name  string
	dial  func(ctx context.Context) (caller, error)
	check func(ctx context.Context, turn string, pairs int) error // what is in its tables
}

// A caller claims and settles, one id at a time.
type caller interface {
	claim(turn, id string) (token string, err error)
	settle(id, token string) error
	close() error
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	options, err := parse(os.Args[1:])
	if err == nil {
		err = bench(ctx, options)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-guard:", err)
		stop()
		os.Exit(1)
	}
}

func parse(args []string) (o options, err error) {
	flags := flag.NewFlagSet("bench-guard", flag.ExitOnError)
	flags.DurationVar(&o.duration, "duration", 5*time.Second, "how long a turn takes")
	flags.IntVar(&o.callers, "callers", 16, "how many callers claim and settle at a time")
	flags.IntVar(&o.repeats, "repeats", 3, "how many turns each contender gets")
	_ = flags.Parse(args) // exits
	switch {
	case flags.NArg() > 0:
		return o, fmt.Errorf("%q is no flag; see -help", flags.Arg(0))
	case o.duration <= 0 || o.callers < 1 || o.repeats < 1:
		return o, errors.New("-duration, -callers and -repeats must be positive")
	}
	return o, nil
}

// bench starts the contenders, measures them, and reports.
func bench(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp("", "oncemill-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s := &stage{dir: dir, options: o}
	defer func() { err = errors.Join(err, s.close()) }()
	all, err := s.start(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("%d callers, %d turns of %v for each contender, which take turns ...\n", o.callers, o.repeats, o.duration)
	results := make([]result, len(all))
	for i, c := range all {
		results[i].name = c.name
		if _, err := turn(ctx, c, o, fmt.Sprint("warm-up-", i), closedLoop(time.Second)); err != nil {
			return err
		}
	}
	for n := range o.repeats {
		for i, c := range all {
			t, err := turn(ctx, c, o, fmt.Sprintf("full-%d-%d", n, i), closedLoop(o.duration))
			if err != nil {
				return err
			}
			results[i].rates = append(results[i].rates, t.rate())
		}
	}
	for n := range o.repeats {
		for i, c := range all {
			r := &results[i]
			t, err := turn(ctx, c, o, fmt.Sprintf("half-%d-%d", n, i), openLoop(o.duration, stats.Median(r.rates)/2))
			if err != nil {
				return err
			}
			r.claims, r.settles = append(r.claims, t.claims...), append(r.settles, t.settles...)
		}
	}
	report(os.Stdout, results)
	return nil
}
