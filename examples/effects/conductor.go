package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"

	"github.com/oncemill/oncemill/examples/internal/crew"
	"github.com/oncemill/oncemill/examples/internal/screen"
)

// leastMessages are enough for each kind of fault to happen.
const leastMessages = 100

// conduct is the demo: the run, the check, and the report.
func conduct(ctx context.Context, args []string) (err error) {
	r := &run{}
	if r.setting, err = parse(args); err != nil {
		return err
	}
	kind := r.setting.kind()
	fmt.Printf(kind.introduction, screen.Thousands(r.setting.Messages))
	if r.dir, err = os.MkdirTemp("", "oncemill-demo-"); err != nil {
		return err
	}
	defer os.RemoveAll(r.dir)
	r.setting.Dir = r.dir
	if r.server, err = crew.StartPostgres(ctx, os.Stdout, "a NATS server, "+kind.provider); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.server.Close()) }()
	if err := r.conduct(ctx); err != nil {
		if ctx.Err() == nil && r.screen.Err == nil {
			fmt.Fprint(os.Stderr, "\n", crew.LogTail(r.dir))
		}
		return err
	}
	return r.report(os.Stdout)
}

func parse(args []string) (s setting, err error) {
	flags := flag.NewFlagSet("effects", flag.ExitOnError)
	flags.StringVar(&s.Kind, "kind", "", "the kind of effect: email or payment; required")
	flags.IntVar(&s.Messages, "messages", 1000, fmt.Sprintf("how many orders to send, at least %d", leastMessages))
	_ = flags.Parse(args) // exits
	switch {
	case flags.NArg() > 0:
		return s, fmt.Errorf("%q is no flag; see -help", flags.Arg(0))
	case s.Kind == "":
		return s, errors.New("-kind is missing: must be email or payment")
	case kinds[s.Kind] == nil:
		return s, fmt.Errorf("-kind is %q: must be email or payment", s.Kind)
	case s.Messages < leastMessages:
		return s, fmt.Errorf("-messages is %d: must be at least %d, for enough to go wrong", s.Messages, leastMessages)
	}
	return s, nil
}
