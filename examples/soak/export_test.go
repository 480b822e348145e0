package main

import (
	"bytes"
	"io"
	"time"
)

// Judged is what is said of columns that have made-up values, by the second, and 0 in all
// others: those that grow, and those of which it is too early to say.
func Judged(duration time.Duration, rate float64, values map[string]func(seconds float64) float64) (grows, early []string) {
	s := made(duration, values)
	for _, f := range judge(s, duration, rate) {
		if f.grows {
			grows = append(grows, f.name)
		}
		if f.early {
			early = append(early, f.name)
		}
	}
	return grows, early
}

// Growth is growth, of the findings about the same.
func Growth(duration time.Duration, values map[string]func(seconds float64) float64, suffixes ...string) string {
	return growth(judge(made(duration, values), duration, 1000), suffixes...)
}

// Draw is draw, of the same.
func Draw(duration time.Duration, values map[string]func(seconds float64) float64) string {
	return draw("2 cores & more", made(duration, values))
}

func made(duration time.Duration, values map[string]func(seconds float64) float64) *samples {
	s := newSamples(new(bytes.Buffer))
	for at := 5.0; at <= duration.Seconds(); at += 5 {
		one := make(sample, len(columns))
		one.set("seconds", at)
		for name, value := range values {
			one.set(name, value(at))
		}
		if err := s.add(one); err != nil {
			panic(err) // a Buffer takes everything
		}
	}
	return s
}

// Sum is the report of ledgers.
func Sum(lost, twice, dead int64) error {
	r := &run{sum: sum{lost: lost, twice: twice, dead: dead}}
	return r.verdict(new(bytes.Buffer), nil)
}

// Columns are the names of all.
func Columns() (names []string) {
	for _, c := range columns {
		names = append(names, c.name)
	}
	return names
}

// Parse is parse.
func Parse(args []string) error {
	_, err := parse(args, io.Discard)
	return err
}
