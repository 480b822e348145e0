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

// leastMessages are enough for each fault to happen five times.
const leastMessages = 100

// conduct is the demo: the run with Oncemill, the one without, and the report.
func conduct(ctx context.Context, args []string) (err error) {
	messages, name, err := parse(args)
	if err != nil {
		return err
	}
	brand := brands[name]
	server, err := brand.find(ctx, os.Stdout)
	if err != nil {
		return err
	}
	fmt.Printf(introduction, screen.Thousands(messages), brand.title)
	dir, err := os.MkdirTemp("", "oncemill-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	// Both runs use the server, each with a database of its own. The brokers start
	// later, one for each run.
	postgres, err := crew.StartPostgres(ctx, os.Stdout, server)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, postgres.Close()) }()

	runs := [2]*run{
		{name: "with Oncemill", database: "with_oncemill", setting: setting{Oncemill: true}},
		{name: "without Oncemill", database: "without_oncemill"},
	}
	for _, r := range runs {
		r.dir, r.server, r.setting.Messages, r.setting.Broker = dir, postgres, messages, name
		if err := r.conduct(ctx); err != nil {
			if ctx.Err() == nil && r.screen.Err == nil {
				fmt.Fprint(os.Stderr, "\n", crew.LogTail(dir))
			}
			return fmt.Errorf("the run %s: %w", r.name, err)
		}
	}
	return report(os.Stdout, runs[0], runs[1])
}

const introduction = `%s orders go to billing, which writes a bill for each and sends an invoice.
For each invoice, shipping writes a shipment. Both are Watermill handlers, on
%s and Postgres. They are given a hard time, with Oncemill and without.

`

func parse(args []string) (messages int, broker string, err error) {
	flags := flag.NewFlagSet("quickstart", flag.ExitOnError)
	flags.IntVar(&messages, "messages", 10_000, fmt.Sprintf("how many orders to send, at least %d", leastMessages))
	flags.StringVar(&broker, "broker", "nats", "the broker: nats, or kafka, which needs Java 17")
	_ = flags.Parse(args) // exits
	switch {
	case flags.NArg() > 0:
		return 0, "", fmt.Errorf("%q is no flag; see -help", flags.Arg(0))
	case messages < leastMessages:
		return 0, "", fmt.Errorf("-messages is %d: must be at least %d, for enough to go wrong", messages, leastMessages)
	case brands[broker] == nil:
		return 0, "", fmt.Errorf("-broker is %q: must be nats or kafka", broker)
	}
	return messages, broker, nil
}
