package main

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/oncemill/oncemill/outbox/watermillsql"
)

var outboxDrainCommand = command{
	name:    "outbox drain",
	summary: "move the messages of a watermill-sql forwarder to the outbox",
	help: `
Move the messages that a forwarder of Watermill has not forwarded yet from the tables
of watermill-sql (v2 to v4, PostgreSQL, default schema) to the outbox, from where
oncemill relay sends them. Each is moved exactly once, however often this is killed and
started again, and also while the forwarder runs.

  oncemill outbox drain --database-url 'postgres://app:secret@127.0.0.1:5432/app?sslmode=disable' \
      --topic events_to_forward --consumer-group '' --dry-run

  oncemill outbox drain --database-url 'postgres://app:secret@127.0.0.1:5432/app?sslmode=disable' \
      --topic events_to_forward --consumer-group '' --follow

--topic is the ForwarderTopic, and --consumer-group the group of the forwarder's
Subscriber: '' if it was given none. The messages beyond the group's row in the offsets
table are moved, and the row is moved on. Nothing is deleted, and other groups stay as
they are.

It ends when nothing is left; with --follow it goes on until SIGTERM or SIGINT, for as
long as old writers write. At a message that is no envelope it stops, with everything
before it moved. Like a subscriber it waits for transactions that began before a message
was written, anywhere in the server, and logs which.

docs/moving-in.md has the order of the steps.`,
	prepare: prepareOutboxDrain,
}

// outboxDrainOptions are the flags of the command outbox drain.
type outboxDrainOptions struct {
	database
	log                                logOptions
	topic, messagesTable, offsetsTable *string
	group                              *string
	fromBeginning, fromNow             *bool
	plain, park, follow, dryRun        *bool
	batch                              *int
	pollInterval                       *time.Duration
}

func prepareOutboxDrain(f *flags) action {
	o := outboxDrainOptions{
		database:      f.database(),
		topic:         f.text("topic", "NAME", "the forwarder's topic; required"),
		group:         f.text("consumer-group", "NAME", "the group of the forwarder's Subscriber, '' if it has none; required"),
		messagesTable: f.text("messages-table", "NAME", "the table of the topic's messages, as it is written in SQL\n(default \"watermill_TOPIC\")"),
		offsetsTable:  f.text("offsets-table", "NAME", "the table of its offsets (default \"watermill_offsets_TOPIC\")"),
		fromBeginning: f.toggle("from-beginning", "if the group has no offsets row, begin with the oldest message"),
		fromNow:       f.toggle("from-now", "if the group has no offsets row, leave out what is in the table"),
		plain:         f.toggle("plain", "the messages are in no envelope: send them to --topic"),
		park:          f.toggle("park", "put what is no envelope into the outbox as parked rows, with the\nerror, and go on"),
		follow:        f.toggle("follow", "go on until SIGTERM"),
		dryRun:        f.toggle("dry-run", "only say what would be moved"),
		batch:         f.count("batch", 500, "the most messages in one transaction"),
		pollInterval:  f.duration("poll-interval", time.Second, "how often to look for messages while there are none"),
		log:           f.log(),
	}
	f.onlyHere("topic", "messages-table", "offsets-table", "consumer-group", "from-beginning", "from-now", "plain", "park", "follow", "dry-run")
	return func(ctx context.Context, stdout, stderr io.Writer) error {
		return o.run(ctx, f.given("consumer-group") != "", stdout, stderr)
	}
}

// run drains. grouped says whether there is a group: "" is one too.
func (o outboxDrainOptions) run(ctx context.Context, grouped bool, stdout, stderr io.Writer) error {
	switch {
	case *o.topic == "":
		return usagef("needs a topic: give --topic, the ForwarderTopic of the program that forwards")
	case !grouped:
		return usagef("needs a consumer group: give --consumer-group, the ConsumerGroup of the forwarder's Subscriber, or --consumer-group '' if it has none")
	case *o.fromBeginning && *o.fromNow:
		return usagef("takes only one of --from-beginning and --from-now")
	case *o.follow && *o.dryRun:
		return usagef("takes only one of --follow and --dry-run")
	}
	connector, err := o.connector()
	if err != nil {
		return err
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	drain := o.drain(db, stderr)
	if *o.dryRun {
		return o.tell(ctx, drain, stdout)
	}
	done, err := drain.Run(ctx)
	if done.Moved > 0 || err == nil {
		fmt.Fprintf(stdout, "%d messages moved, %d of them parked; group '%s' is at %s\n", done.Moved, done.Parked, *o.group, done.Position)
	}
	return err
}

func (o outboxDrainOptions) drain(db *sql.DB, stderr io.Writer) *watermillsql.Drain {
	d := &watermillsql.Drain{
		DB: db, Schema: *o.schema,
		Topic: *o.topic, ConsumerGroup: *o.group, MessagesTable: *o.messagesTable, OffsetsTable: *o.offsetsTable,
		Plain: *o.plain, Park: *o.park, Follow: *o.follow, Batch: *o.batch, PollInterval: *o.pollInterval,
		Logger: o.log.logger(stderr),
	}
	switch {
	case *o.fromBeginning:
		d.Start = watermillsql.FromBeginning
	case *o.fromNow:
		d.Start = watermillsql.FromNow
	}
	return d
}

// tell writes what would be moved.
func (o outboxDrainOptions) tell(ctx context.Context, drain *watermillsql.Drain, stdout io.Writer) error {
	p, err := drain.Pending(ctx)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "TOPIC\tMESSAGES")
	for _, topic := range slices.Sorted(maps.Keys(p.Topics)) {
		fmt.Fprintf(table, "%s\t%d\n", shown(topic), p.Topics[topic])
	}
	if p.Bad > 0 {
		fmt.Fprintf(table, "(cannot be moved)\t%d\n", p.Bad)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "group '%s' is at %s; %d of these wait for older transactions to end; nothing was moved (--dry-run)\n", *o.group, p.From, p.HeldBack)
	if p.First != nil && !*o.park {
		return p.First
	}
	return nil
}
