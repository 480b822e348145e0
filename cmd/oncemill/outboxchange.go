package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

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

When messages with few ordering keys all went to a topic that never was, only the first
of each key has failed, and the others wait behind it. With --with-behind they are
dropped too: those of the same keys behind it whose topic is that of --topic. Give --topic
'*' if it does not matter.

  oncemill outbox drop --deferred --topic ordres --with-behind --dry-run

Messages that a relay has in its hands just then are left out, and counted. None of the
flags that say which is read from the environment.`,
	prepare: func(f *flags) action {
		o := changeOptions{database: f.database(), selection: f.selection()}
		o.all = f.toggle("all", "all that are parked")
		o.dryRun = f.toggle("dry-run", "only say how many there are")
		o.yes = f.toggle("yes", "they are to be lost; required")
		o.print = f.toggle("print", "write metadata and payload too")
		o.withBehind = f.toggle("with-behind", "also those of --topic that wait behind them, of the same ordering keys")
		f.onlyHere("all", "dry-run", "yes", "print", "with-behind")
		return func(ctx context.Context, stdout, stderr io.Writer) error { return o.drop(ctx, stdout, stderr) }
	},
}

// changeOptions are the flags of the commands outbox retry and outbox drop.
type changeOptions struct {
	database
	selection
	all, dryRun, yes, print, withBehind *bool
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
	if err == nil {
		err = noneChanged(ctx, admin, filter, changed)
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
	if *o.withBehind && *o.topic == "" {
		return usagef("needs --topic with --with-behind: of which topics are those that wait to be dropped? (--topic '*': of all)")
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
		return errors.Join(wouldBe(ctx, admin, filter, "dropped", stdout), o.behindWouldBe(ctx, admin, filter, stdout))
	}
	drop := admin.Drop
	if *o.withBehind {
		drop = admin.DropWithBehind
	}
	encoder := json.NewEncoder(stdout)
	changed, err := drop(ctx, filter, func(e outbox.Entry) error { return encoder.Encode(o.dropped(e)) })
	if err == nil {
		err = noneChanged(ctx, admin, filter, changed)
	}
	if err != nil && changed.Rows+changed.Behind == 0 {
		return err
	}
	printed := printChanged(changed, filter, "dropped", stderr)
	if changed.Behind > 0 {
		fmt.Fprintf(stderr, "%s dropped too\n", waitedBehind(changed.Behind, "waited", "was", "were"))
	}
	if changed.GoOn > 0 {
		fmt.Fprintf(stderr, "%d of the same ordering keys go on now\n", changed.GoOn)
	}
	return errors.Join(printed, err)
}

// behindWouldBe says how many wait behind those that match, if they are meant too.
func (o changeOptions) behindWouldBe(ctx context.Context, admin *outbox.Admin, filter outbox.Filter, stdout io.Writer) error {
	if !*o.withBehind {
		return nil
	}
	n, err := admin.CountBehind(ctx, filter)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "%s dropped too\n", waitedBehind(n, "waits", "would be", "would be"))
	return err
}

// waitedBehind is a number of messages with what they do and its verb.
func waitedBehind(n int64, does, is, are string) string {
	if n == 1 {
		return "1 that " + does + " behind " + is
	}
	return fmt.Sprintf("%d that %s behind %s", n, strings.TrimSuffix(does, "s"), are)
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

// noneChanged returns an error if one row was named, and is not one of those that were
// changed or held by somebody.
func noneChanged(ctx context.Context, admin *outbox.Admin, filter outbox.Filter, changed outbox.Changed) error {
	if filter.ID == 0 || changed.Rows > 0 || changed.Skipped > 0 {
		return nil
	}
	return whatIsIt(ctx, admin, filter)
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
	is, are := "is", "are"
	if what == "dropped" {
		is, are = "was", "were"
	}
	if changed.Rows == 1 {
		are = is
	}
	_, err := fmt.Fprintf(to, "%s %s %s\n", messages(changed.Rows, filter.State), are, what)
	if changed.Skipped > 0 && err == nil {
		_, err = fmt.Fprintf(to, "%d more are in the hands of a relay or of somebody else, and were left as they are: run it again\n", changed.Skipped)
	}
	return err
}
