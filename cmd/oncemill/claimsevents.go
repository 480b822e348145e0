package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/oneline"
)

var claimsEventsCommand = command{
	name:    "claims events",
	summary: "show what happened to one key",
	args:    []string{"CONSUMER", "KEY"},
	help: `
Show what happened to the claims of one key, in order: attempts, refusals, who
settled or resolved them and why.

  oncemill claims events payments order-7`,
	prepare: func(f *flags) action {
		d := f.database()
		asJSON := f.toggle("json", "write a JSON object a line instead of a table")
		return func(ctx context.Context, stdout, _ io.Writer) error {
			return printEvents(ctx, d, f.args[0], f.args[1], *asJSON, stdout)
		}
	},
}

var errNoKey = usagef("KEY is empty: it is the message's idempotency key, as oncemill claims --in-doubt and the log show it")

func printEvents(ctx context.Context, d database, name, key string, asJSON bool, stdout io.Writer) error {
	if key == "" {
		return errNoKey
	}
	consumer, close, err := d.consumer(ctx, name, nil)
	if err != nil {
		return err
	}
	defer close()
	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	for after := int64(0); ; {
		events, err := consumer.Events(ctx, key, after, page)
		switch {
		case err != nil:
			return err
		case len(events) == 0 && after == 0:
			return fmt.Errorf("there are no events of key %q of consumer %q (events of plain Once are not kept, and those of claims for 90 days, unless Inbox.EventRetention says otherwise)", key, name)
		case asJSON:
			err = printJSON(stdout, events)
		default:
			err = printEventRows(table, events, after == 0)
		}
		if err != nil || len(events) < page {
			return err
		}
		after = events[len(events)-1].ID
	}
}

func printEventRows(table *tabwriter.Writer, events []oncemill.Event, first bool) error {
	if first {
		fmt.Fprintln(table, "TIME\tEVENT\tTOKEN\tAMOUNT\tBY\tNOTE")
	}
	for _, e := range events {
		fmt.Fprintf(table, "%s\t%s\t%d\t%s\t%s\t%s\n", e.At.UTC().Format(time.RFC3339Nano), e.Kind, e.Token,
			shownAmount(e.Amount, e.Currency), shown(e.Actor), oneline.Of(e.Note, mostNote))
	}
	return table.Flush()
}
