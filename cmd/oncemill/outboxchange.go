package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/oncemill/oncemill/outbox"
)

var outboxRetryCommand = command{
	name:    "outbox retry",
	summary: "have parked messages tried again",
	help: `
Have parked messages tried again at once, as if they had never failed. First see to it
that the broker takes them now: that it lets them be as large as they are. Each keeps its
place among those of its ordering key, which wait for it.

  oncemill outbox retry --topic 'orders.*' --dry-run
  oncemill outbox retry --error max_payload
  oncemill outbox retry --all

With --deferred it is those that are going to be tried again in any case, at once. Those
whose subject no stream captures are among them: they are not parked.

  oncemill outbox retry --deferred --error 'no stream captures'

Messages that a relay has in its hands just then are left out, and counted. None of the
flags that say which is read from the environment.`,
	prepare: func(f *flags) action {
		o := changeOptions{database: f.database(), selection: f.selection()}
		o.all = f.toggle("all", "all that are parked")
		o.dryRun = f.toggle("dry-run", "only say how many there are")
		f.onlyHere("all", "dry-run")
		return func(ctx context.Context, stdout, _ io.Writer) error { return o.retry(ctx, stdout) }
	},
}

var outboxDropCommand = command{
	name:    "outbox drop",
	summary: "delete parked messages",
	help: `
Delete parked messages for good. Those of their ordering keys that have waited for them
go on. A consumer never hears of what is dropped.

  oncemill outbox drop --id 7 --dry-run
  oncemill outbox drop --id 7 --yes --print >> dropped.jsonl
  oncemill outbox drop --all --yes

It writes a JSON object a line for each to the standard output, before it is deleted:
its topic, UUID and key, and with --print all that is needed to publish it after all,
with ordering key and payload in base64. If that cannot be written, it stays.

With --deferred it is those that are going to be tried again.

Messages that a relay has in its hands just then are left out, and counted. None of the
flags that say which is read from the environment.`,
	prepare: func(f *flags) action {
		o := changeOptions{database: f.database(), selection: f.selection()}
		o.all = f.toggle("all", "all that are parked")
		o.dryRun = f.toggle("dry-run", "only say how many there are")
		o.yes = f.toggle("yes", "they are to be lost; required")
		o.print = f.toggle("print", "write metadata and payload too")
		f.onlyHere("all", "dry-run", "yes", "print")
		return func(ctx context.Context, stdout, stderr io.Writer) error { return o.drop(ctx, stdout, stderr) }
	},
}

// changeOptions are the flags of the commands outbox retry and outbox drop.
type changeOptions struct {
	database
	selection
	all, dryRun, yes, print *bool
}

func (o changeOptions) retry(ctx context.Context, stdout io.Writer) error {
	filter := o.filter()
	if err := checkAll(filter, *o.all); err != nil {
		return err
	}
	admin, close, err := o.admin(ctx)
	if err != nil {
		return err
	}
	defer close()
	if *o.dryRun {
		return wouldBe(ctx, admin, filter, "tried again", stdout)
	}
	changed, err := admin.Retry(ctx, filter)
	if err == nil && filter.ID != 0 && changed.Rows == 0 && changed.Skipped == 0 {
		err = whatIsIt(ctx, admin, filter)
	}
	if err != nil && changed.Rows == 0 {
		return err
	}
	return errors.Join(printChanged(changed, filter, "tried again", stdout), err)
}

func (o changeOptions) drop(ctx context.Context, stdout, stderr io.Writer) error {
	filter := o.filter()
	if err := checkAll(filter, *o.all); err != nil {
		return err
	}
	if !*o.yes && !*o.dryRun {
		return usagef("needs --yes: what is dropped is lost (--dry-run says how many that would be)")
	}
	admin, close, err := o.admin(ctx)
	if err != nil {
		return err
	}
	defer close()
	if *o.dryRun {
		return wouldBe(ctx, admin, filter, "dropped", stdout)
	}
	encoder := json.NewEncoder(stdout)
	changed, err := admin.Drop(ctx, filter, func(e outbox.Entry) error { return encoder.Encode(o.dropped(e)) })
	if err == nil && filter.ID != 0 && changed.Rows == 0 && changed.Skipped == 0 {
		err = whatIsIt(ctx, admin, filter)
	}
	if err != nil && changed.Rows == 0 {
		return err
	}
	printed := printChanged(changed, filter, "dropped", stderr)
	if changed.GoOn > 0 {
		fmt.Fprintf(stderr, "%d of the same ordering keys go on now\n", changed.GoOn)
	}
	return errors.Join(printed, err)
}

// A droppedEntry is a line about what is dropped. The lower part is there with --print.
type droppedEntry struct {
	ID    int64   `json:"id"`
	Topic string  `json:"topic"`
	UUID  string  `json:"uuid"`
	Key   *string `json:"key"` // null: none, or one that is no text

	*wholeEntry
}

type wholeEntry struct {
	OrderingKey []byte          `json:"ordering_key"` // in base64; null: none
	Metadata    json.RawMessage `json:"metadata"`     // as the column has it
	Payload     []byte          `json:"payload"`      // in base64; null: none
	Error       string          `json:"error"`
}

func (o changeOptions) dropped(e outbox.Entry) droppedEntry {
	line := droppedEntry{ID: e.ID, Topic: e.Topic, UUID: e.UUID, Key: keyText(e.OrderingKey)}
	if *o.print {
		line.wholeEntry = &wholeEntry{e.OrderingKey, json.RawMessage(e.MetadataText), e.Payload, e.Error}
	}
	return line
}

func wouldBe(ctx context.Context, admin *outbox.Admin, filter outbox.Filter, what string, stdout io.Writer) error {
	n, err := admin.Count(ctx, filter)
	if err == nil && n == 0 && filter.ID != 0 {
		err = whatIsIt(ctx, admin, filter)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "%s would be %s\n", messages(n, filter.State), what)
	return err
}

// whatIsIt says why the one row that a filter names does not match.
func whatIsIt(ctx context.Context, admin *outbox.Admin, filter outbox.Filter) error {
	state, err := admin.StateOf(ctx, filter.ID)
	if err != nil {
		return err
	}
	switch {
	case state == "":
		return fmt.Errorf("there is no message %d in the outbox: it was sent or dropped before, or has another id", filter.ID)
	case state == filter.State:
		return fmt.Errorf("message %d is %s, but does not match the other flags", filter.ID, state)
	case state == outbox.Deferred:
		return fmt.Errorf("message %d is deferred, not parked: add --deferred", filter.ID)
	case state == outbox.Parked:
		return fmt.Errorf("message %d is parked, not deferred: leave out --deferred", filter.ID)
	}
	return fmt.Errorf("message %d is not %s: it waits for a relay, or for one before it with the same ordering key", filter.ID, filter.State)
}

func printChanged(changed outbox.Changed, filter outbox.Filter, what string, to io.Writer) error {
	are := "are"
	if changed.Rows == 1 {
		are = "is"
	}
	if what == "dropped" {
		are = map[string]string{"are": "were", "is": "was"}[are]
	}
	_, err := fmt.Fprintf(to, "%s %s %s\n", messages(changed.Rows, filter.State), are, what)
	if changed.Skipped > 0 && err == nil {
		_, err = fmt.Fprintf(to, "%d more are in the hands of a relay or of somebody else, and were left as they are: run it again\n", changed.Skipped)
	}
	return err
}
