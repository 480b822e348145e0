package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/oncemill/oncemill/examples/internal/crew"
)

// conduct has the contenders take turns, and reports.
func conduct(ctx context.Context, args []string) (err error) {
	o, err := parse(args, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	s, err := open(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	results, err := s.compete(ctx)
	if err != nil {
		if ctx.Err() == nil && s.screen.Err == nil {
			fmt.Fprint(os.Stderr, "\n", crew.LogTail(s.dir))
		}
		return err
	}
	s.screen.End()
	on, err := s.setup(ctx)
	if err != nil {
		return err
	}
	write(os.Stdout, on, results)
	if o.svg == "" {
		return nil
	}
	return os.WriteFile(o.svg, []byte(draw(on, results)), 0o644)
}

// compete lets the contenders take turns: one after the other and then again, so that
// what changes with time is the same for all.
func (s *stage) compete(ctx context.Context) (results []result, err error) {
	s.screen.Title("%d turns of about %v for each contender, after some to find its best settings ...", s.options.repeats, s.options.turn)
	for _, c := range all(s.options) {
		if !s.options.wants(c) {
			continue
		}
		if err := s.choose(ctx, c); err != nil {
			return nil, err
		}
		results = append(results, result{contender: c, choice: s.chosen[c.name].about})
	}
	for n := range s.options.repeats {
		for i := range results {
			r := &results[i]
			got, err := s.take(ctx, r.contender, s.chosen[r.name], s.messagesOf(r.contender), n == s.options.repeats-1)
			if err != nil {
				return nil, err
			}
			r.samples = append(r.samples, got)
			s.screen.Line(fmt.Sprintf("turn %d of %d: %s %s", n+1, s.options.repeats, r.name, r.format(got.value)))
		}
	}
	return results, nil
}

func (s *stage) setup(ctx context.Context) (on setup, err error) {
	d, err := s.database(ctx, emptyDatabase)
	if err != nil {
		return on, err
	}
	var version string
	if err := d.db.QueryRowContext(ctx, `SHOW server_version`).Scan(&version); err != nil {
		return on, err
	}
	number, _, _ := strings.Cut(version, " ")
	on = setup{machine: machine(), postgres: "Postgres " + number, flush: s.flush}
	if s.options.latency > 0 {
		on.latency = fmt.Sprintf(", and each answer of Postgres to a worker %v longer", s.options.latency.Round(time.Millisecond))
	}
	return on, nil
}

// profileOf is where a contender's profile goes.
func (o *options) profileOf(c contender) string {
	if o.profile == "" || len(o.only) == 1 {
		return o.profile
	}
	return o.profile + "." + c.name
}

func indexOf(name string, o options) int {
	return slices.IndexFunc(all(o), func(c contender) bool { return c.name == name })
}

func indexOfChoice(choices []choice, about string) int {
	return slices.IndexFunc(choices, func(c choice) bool { return c.about == about })
}
