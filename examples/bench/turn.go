package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/oncemill/oncemill/examples/internal/crew"
	"github.com/oncemill/oncemill/examples/internal/screen"
)

// A turn is one of a contender's.
type turn struct {
	contender
	name     string
	messages int
	choice   choice
	setting  setting
	db       *database
	claims   int // in the table before
	last     bool
}

// A sample is what came of a turn.
type sample struct {
	value  float64
	took   time.Duration
	again  int   // deliveries that failed, and came again
	usage  usage // of processors
	number int   // of messages
}

// take takes a turn.
func (s *stage) take(ctx context.Context, c contender, ch choice, messages int, last bool) (result sample, err error) {
	s.turns++
	t := &turn{contender: c, choice: ch, name: fmt.Sprintf("t%d", s.turns), messages: messages, last: last}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s, turn %s of %d messages: %w", c.name, t.name, messages, err)
		}
	}()
	if t.db, err = s.database(ctx, c.database); err != nil {
		return sample{}, err
	}
	t.setting = setting{Postgres: t.db.worker, NATS: s.where, Topic: "in-" + t.name, Out: "out-" + t.name, Messages: messages}
	if ch.set != nil {
		ch.set(&t.setting)
	}
	if last {
		t.setting.Profile = s.options.profileOf(c)
	}
	if c.measure != nil {
		value, err := c.measure(ctx, s, t)
		return sample{value: value, number: messages}, err
	}
	return s.takeCounted(ctx, t)
}

// takeCounted is a turn with a number of messages, which is to be done with each once.
func (s *stage) takeCounted(ctx context.Context, t *turn) (result sample, err error) {
	release := func() error { return nil }
	if t.held {
		if release, err = t.db.hold(ctx); err != nil {
			return sample{}, err
		}
	}
	defer func() { err = errors.Join(err, release()) }()
	// What earlier turns have written goes to the disk now. It comes before the rows of
	// this one are, or those that relays send would each be written to the log as a part of
	// a whole page: rows are seldom as old as the last checkpoint when they are sent.
	if _, err := t.db.db.ExecContext(ctx, `CHECKPOINT`); err != nil {
		return sample{}, err
	}
	if err := t.prepare(ctx, s, t); err != nil {
		return sample{}, fmt.Errorf("prepare: %w", err)
	}
	result, err = s.run(ctx, t)
	if err != nil {
		return sample{}, err
	}
	if err := t.check(ctx, s, t); err != nil {
		return sample{}, fmt.Errorf("check: %w", err)
	}
	return result, s.removeStreams(ctx, t)
}

// run has the workers do what is prepared.
func (s *stage) run(ctx context.Context, t *turn) (result sample, err error) {
	before, err := s.servers()
	if err != nil {
		return sample{}, err
	}
	workers, err := s.spawn(t)
	if err != nil {
		return sample{}, err
	}
	var all report
	err = s.crew.Attend(ctx, func() (bool, error) {
		all = s.sum(workers)
		s.screen.Status(fmt.Sprintf("%s (%s): %s of %s", t.contender.name, t.choice.about, screen.Thousands(all.Done), screen.Thousands(t.messages)))
		return all.Done >= t.messages && !all.Busy, nil
	})
	if err != nil {
		return sample{}, err
	}
	after, err := s.servers()
	if err != nil {
		return sample{}, err
	}
	if err := s.crew.StopAll(ctx, "broker"); err != nil {
		return sample{}, err
	}
	took := time.Duration(all.Last - all.First)
	result = sample{value: float64(t.messages) / took.Seconds(), took: took, again: all.Failed, number: t.messages}
	result.usage = usage{worker: time.Duration(all.CPU), postgres: after.postgres - before.postgres, nats: after.nats - before.nats}
	return result, nil
}

func (s *stage) spawn(t *turn) (workers []*crew.Child, err error) {
	for i := range max(t.workers, 1) {
		set := t.setting
		if i > 0 {
			set.Profile = "" // one is enough
		}
		child, err := s.crew.Spawn(t.role, set)
		if err != nil {
			return nil, err
		}
		workers = append(workers, child)
	}
	return workers, nil
}

// heard takes a worker's report.
func (s *stage) heard(from *crew.Child, line string) (taken bool, err error) {
	if from.Role == "broker" {
		return false, nil
	}
	r, err := readReport(line)
	if s.reports[from] != r {
		s.crew.Changed()
	}
	s.reports[from] = r
	return true, err
}

// sum is what all workers have done together.
func (s *stage) sum(workers []*crew.Child) (all report) {
	for _, w := range workers {
		r := s.reports[w]
		all.Done += r.Done
		all.Failed += r.Failed
		all.CPU += r.CPU
		all.Busy = all.Busy || r.Busy
		all.Last = max(all.Last, r.Last)
		if r.First > 0 && (all.First == 0 || r.First < all.First) {
			all.First = r.First
		}
	}
	return all
}

// probeFirst is how many messages the first turn has, whose length nobody knows yet.
const probeFirst = 300

// choose finds out by which of its settings a contender is fastest, and how fast.
func (s *stage) choose(ctx context.Context, c contender) error {
	if _, known := s.chosen[c.name]; known || c.measure != nil {
		return nil
	}
	if i := indexOf(c.like, s.options); c.like != "" {
		if err := s.choose(ctx, all(s.options)[i]); err != nil {
			return err
		}
		at := indexOfChoice(all(s.options)[i].choices, s.chosen[c.like].about)
		s.chosen[c.name], s.rates[c.name] = c.choices[at], s.rates[c.like]
		return nil
	}
	for _, ch := range c.choices {
		rate, err := s.probe(ctx, c, ch)
		if err != nil {
			return err
		}
		if len(c.choices) > 1 {
			s.screen.Line(fmt.Sprintf("%s with %s: %.0f a second", c.name, ch.about, rate))
		}
		if rate > s.rates[c.name] {
			s.chosen[c.name], s.rates[c.name] = ch, rate
		}
	}
	return nil
}

// probe takes turns of more and more messages until one is long enough to tell something.
func (s *stage) probe(ctx context.Context, c contender, ch choice) (rate float64, err error) {
	const growth = 8
	enough := s.options.probe
	if c.deep {
		enough = s.options.turn
	}
	for messages := probeFirst; ; {
		result, err := s.take(ctx, c, ch, messages, false)
		if err != nil || result.took >= enough*2/3 {
			return result.value, err
		}
		more := float64(messages) * min(growth, 1.1*enough.Seconds()/result.took.Seconds())
		messages = max(int(more), messages+1)
	}
}

// messagesOf is how many make a turn as long as it should be.
func (s *stage) messagesOf(c contender) int {
	if c.measure != nil {
		return max(int(s.options.turn.Seconds()*float64(s.options.pace)), 1)
	}
	messages := max(int(s.rates[c.name]*s.options.turn.Seconds()), 2*s.options.batch)
	if c.most > 0 {
		messages = min(messages, c.most)
	}
	return messages
}
