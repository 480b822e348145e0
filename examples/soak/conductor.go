package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/oncemill/oncemill/examples/internal/crew"
	"github.com/oncemill/oncemill/examples/internal/screen"
)

var (
	errLedger = errors.New("messages are lost, or have had their effect twice")
	errGrows  = errors.New("something grows")
)

// conduct is the whole run.
func conduct(ctx context.Context, args []string) (err error) {
	o, err := parse(args, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	csv, err := create(o.csv)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, csv.Close()) }()
	s, err := openSite(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	r := &run{options: o, site: s, screen: screen.New(os.Stdout), samples: newSamples(csv), pulses: make(map[*crew.Child]pulse)}
	defer func() { err = errors.Join(err, r.draw()) }() // what there is, also if it was interrupted
	if err := r.conduct(ctx); err != nil {
		if ctx.Err() == nil && r.screen.Err == nil {
			fmt.Fprint(os.Stderr, "\n", crew.LogTail(s.dir))
		}
		return err
	}
	return r.report(os.Stdout)
}

// draw writes the chart.
func (r *run) draw() error {
	if r.svg == "" || len(r.samples.all) == 0 {
		return nil
	}
	about := fmt.Sprintf("%s; %.0f messages a second", r.about, r.rate)
	return os.WriteFile(r.svg, []byte(draw(about, r.samples)), 0o644)
}

// create creates a file; one without a name takes everything and keeps nothing.
func create(name string) (*os.File, error) {
	if name == "" {
		name = os.DevNull
	}
	return os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
}

// A run has everybody work, and watches. One goroutine has the say over everything in it.
type run struct {
	options
	*site
	screen   *screen.Screen
	crew     *crew.Crew
	setting  setting // for the children
	children []*crew.Child
	pulses   map[*crew.Child]pulse
	samples  *samples
	capacity float64 // messages a second; 0: not measured
	sum      sum

	sampled     time.Time // when the last sample was taken,
	before      int64     // and the effects by then
	lastArrival int64     // the id of the last one that was looked at
}

func (r *run) conduct(ctx context.Context) error {
	r.crew = crew.New(r.dir)
	r.crew.Heard, r.crew.Watch = r.heard, func() error { return r.screen.Err }
	defer r.crew.KillAll(roleNATS)
	defer r.screen.End()
	r.screen.Restart()
	if err := r.hire(ctx); err != nil {
		return err
	}
	if err := r.measure(ctx); err != nil {
		return err
	}
	if err := r.soak(ctx); err != nil {
		return err
	}
	r.screen.Line("waiting until all is worked off")
	if err := r.drain(ctx); err != nil {
		return err
	}
	if err := r.crew.StopAll(ctx, roleNATS, roleProvider); err != nil {
		return err
	}
	return r.audit(ctx)
}

// hire starts everybody but the producer.
func (r *run) hire(ctx context.Context) (err error) {
	r.setting.Postgres = r.address
	for _, start := range []struct {
		role  string
		tells *string
	}{{roleNATS, &r.setting.NATS}, {roleProvider, &r.setting.Provider}} {
		child, err := r.spawn(start.role)
		if err != nil {
			return err
		}
		if *start.tells, err = r.crew.Await(ctx, child); err != nil {
			return err
		}
	}
	if err := r.connect(ctx, r.setting.NATS); err != nil {
		return err
	}
	for _, p := range places {
		for range p.count {
			switch p.role {
			case roleNATS, roleProvider, roleProducer:
				continue
			}
			if _, err := r.spawn(p.role); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *run) spawn(role string) (*crew.Child, error) {
	child, err := r.crew.Spawn(role, r.setting)
	if err == nil {
		r.children = append(r.children, child)
	}
	return child, err
}

// heard deals with what a process says.
func (r *run) heard(from *crew.Child, line string) (taken bool, err error) {
	p, taken, err := parsePulse(line)
	if taken {
		r.pulses[from] = p
	}
	return taken, err
}

// produce has a producer send for a while, and something done meanwhile, now and then.
func (r *run) produce(ctx context.Context, rate float64, during time.Duration, do func(since time.Duration) error) error {
	r.setting.Rate = rate
	producer, err := r.spawn(roleProducer)
	if err != nil {
		return err
	}
	begun := time.Now()
	if err := r.crew.Attend(ctx, func() (bool, error) {
		r.crew.Changed()
		return time.Since(begun) >= during, do(time.Since(begun))
	}); err != nil {
		return err
	}
	producer.Stop()
	answer, err := r.crew.Await(ctx, producer)
	if err != nil {
		return err
	}
	r.children = slices.DeleteFunc(r.children, func(c *crew.Child) bool { return c == producer })
	r.setting.First, err = strconv.ParseInt(answer, 10, 64)
	return err
}

// measure finds out what they can do together: how many messages arrive downstream in the
// later half of the time.
func (r *run) measure(ctx context.Context) (err error) {
	if r.rate > 0 {
		return nil
	}
	r.screen.Line(fmt.Sprintf("measuring the capacity, for %v", r.options.capacity))
	var from int64
	var begun time.Time
	err = r.produce(ctx, 0, r.options.capacity, func(since time.Duration) (err error) {
		if begun.IsZero() && since >= r.options.capacity/2 {
			from, err = r.arrivals.count(ctx, r.db)
			begun = time.Now()
		}
		return err
	})
	if err != nil {
		return err
	}
	to, err := r.arrivals.count(ctx, r.db)
	if err != nil {
		return err
	}
	r.capacity = float64(to-from) / time.Since(begun).Seconds()
	if r.rate = share * r.capacity; r.rate < 1 {
		return fmt.Errorf("the capacity is %.1f messages a second: too little to soak with", r.capacity)
	}
	r.screen.Line(fmt.Sprintf("the capacity is %s messages a second; the soak has %s", screen.Thousands(int(r.capacity)), screen.Thousands(int(r.rate))))
	return r.drain(ctx)
}

// soak sends messages for the whole time, and takes samples.
func (r *run) soak(ctx context.Context) error {
	if _, err := r.sample(ctx, 0); err != nil { // the next one tells what was since
		return err
	}
	next := r.every
	return r.produce(ctx, r.rate, r.duration, func(since time.Duration) error {
		if since < next {
			return nil
		}
		next = since.Truncate(r.every) + r.every
		s, err := r.sample(ctx, since)
		if err != nil {
			return err
		}
		r.screen.Status(s.String())
		return r.samples.add(s)
	})
}

// drainLimit is for how long there may be no progress: longer than a claim takes that comes
// to be in doubt and is asked about.
const drainLimit = 2*lease + effectTimeout

// drain waits until all that was sent has arrived downstream. What does not is lost, which
// the audit tells.
func (r *run) drain(ctx context.Context) error {
	var last int64
	progress := time.Now()
	return r.crew.Attend(ctx, func() (bool, error) {
		r.crew.Changed()
		n, err := r.arrivals.count(ctx, r.db)
		if n > last {
			last, progress = n, time.Now()
		}
		return n >= r.setting.First || time.Since(progress) > drainLimit, err
	})
}
