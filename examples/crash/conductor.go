package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/oncemill/oncemill/examples/internal/crew"
	"github.com/oncemill/oncemill/examples/internal/screen"
)

// errAnomalies ends a run in which the checker has found something.
var errAnomalies = errors.New("the checker has found anomalies")

// conduct is the whole run.
func conduct(ctx context.Context, args []string) (err error) {
	o, err := parse(args, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	dir, clean, err := directory(o.keep)
	if err != nil {
		return err
	}
	defer clean()
	fmt.Printf(introduction, o.seconds, o.seed)
	if o.profile != safe {
		fmt.Printf("Something will be missing: %s.\n", o.profile.what)
	}
	site, err := openSite(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, site.close()) }()
	r := &run{options: o, dir: dir, site: site, screen: screen.New(os.Stdout), faults: make(map[string]int)}
	if err := r.conduct(ctx); err != nil {
		if ctx.Err() == nil && r.screen.Err == nil {
			fmt.Fprint(os.Stderr, "\n", crew.LogTail(dir))
		}
		return err
	}
	if r.report(os.Stdout) > 0 {
		return errAnomalies
	}
	return nil
}

const introduction = `A crash run of %d seconds, seed %d: everything that can go wrong does, and then all ledgers are compared.
The draws repeat with the seed; what they meet does not, since processes are not in step.
`

// directory returns where the run's files are.
func directory(keep string) (dir string, clean func(), err error) {
	if keep != "" {
		return keep, func() {}, os.MkdirAll(keep, 0o755)
	}
	dir, err = os.MkdirTemp("", "oncemill-crash-")
	return dir, func() { os.RemoveAll(dir) }, err
}

// A run sends messages through while things go wrong, and has it checked. One goroutine
// has the say over its processes: see cast.go.
type run struct {
	options
	dir    string
	site   *site
	screen *screen.Screen
	begun  time.Time

	crew  *crew.Crew
	cast  map[part]*actor
	gone  map[*crew.Child]*actor // that were told to end, and have not yet
	found []anomaly              // that are not of the checker's
	early bool                   // it ends with the first one
	due   []pending              // processes to be started later

	base    setting        // what all processes are told
	faults  map[string]int // by kind
	verdict verdict
}

func (r *run) conduct(ctx context.Context) error {
	r.crew = crew.New(r.dir)
	r.crew.Heard, r.crew.Ended, r.crew.Watch = r.heard, r.ended, r.watch
	r.cast, r.gone = make(map[part]*actor), make(map[*crew.Child]*actor)
	defer r.crew.KillAll()
	defer r.screen.End()
	r.screen.Restart()
	r.begun = time.Now()
	if err := r.hireAll(ctx); err != nil {
		return err
	}
	r.screen.Line("all processes run")
	if err := r.work(ctx); err != nil {
		return err
	}
	if r.early { // the rest says nothing in the middle of the work
		r.verdict.found = r.found
		return r.explain(ctx)
	}
	if err := r.end(ctx); err != nil {
		return err
	}
	facts, err := r.readFacts(ctx)
	if err != nil {
		return err
	}
	r.verdict = facts.judge()
	r.verdict.found = append(r.found, r.verdict.found...)
	return r.explain(ctx)
}

// work has everybody work while the nemesis is about, and then until nothing is left to do.
func (r *run) work(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	n, err := newNemesis(r)
	if err != nil {
		return err
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		n.act(ctx)
	}()
	looking, stop := context.WithCancel(ctx)
	seen := make(chan struct{})
	go func() {
		defer close(seen)
		r.look(looking)
	}()
	err = r.crew.Attend(ctx, func() (bool, error) {
		select {
		case <-over:
			return true, nil
		default:
			r.crew.Changed()
			r.early = r.untilAnomaly && len(r.found) > 0
			return r.early, nil
		}
	})
	if err != nil || r.early {
		cancel()
	}
	<-over
	stop()
	<-seen
	if err = errors.Join(err, n.failed()); err != nil || r.early {
		return err
	}
	r.screen.Line(fmt.Sprintf("%d faults are over and everything is mended; waiting for all to be worked off", sum(r.faults)))
	if err := r.dismiss(ctx, roleProducer, roleClerk, roleAgent); err != nil {
		return err
	}
	return r.drain(ctx)
}

// end stops everybody, as an operator would.
func (r *run) end(ctx context.Context) error {
	return r.dismiss(ctx, roleProducer, roleClerk, roleAgent, roleSingle, roleBatch, roleGuarded, roleRelay, roleGuard, roleDownstream, roleProvider)
}

func sum(counts map[string]int) (n int) {
	for _, count := range counts {
		n += count
	}
	return n
}
