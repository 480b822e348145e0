package main

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/oncemill/oncemill/internal/metadata"
	"github.com/oncemill/oncemill/internal/oneline"
	"github.com/oncemill/oncemill/outbox"
)

var outboxListCommand = command{
	name:    "outbox list",
	summary: "list the messages that are parked, deferred or scheduled",
	help: `
List the messages that relays have given up: those that the broker has refused, or that
have failed too often. They are parked until somebody deals with them, with oncemill
outbox retry or oncemill outbox drop. BEHIND is how many messages with the same ordering
key wait for one.

  oncemill outbox list
  oncemill outbox list --topic 'orders.*' --error max_payload
  oncemill outbox list --deferred --error 'no stream captures'
  oncemill outbox list --summary

With --deferred it lists those that failed and are going to be tried again, and with
--scheduled those that are to be sent later.`,
	prepare: prepareOutboxList,
}

// outboxListOptions are the flags of the command outbox list.
type outboxListOptions struct {
	database
	selection
	scheduled, summary, json *bool
}

func prepareOutboxList(f *flags) action {
	o := outboxListOptions{
		database:  f.database(),
		selection: f.selection(),
		scheduled: f.toggle("scheduled", "those that are to be sent later, in place of the parked ones"),
		summary:   f.toggle("summary", "how many there are of each topic and error"),
		json:      f.toggle("json", "write a JSON object a line instead of a table"),
	}
	f.onlyHere("scheduled", "summary")
	return func(ctx context.Context, stdout, _ io.Writer) error { return o.run(ctx, stdout) }
}

func (o outboxListOptions) run(ctx context.Context, stdout io.Writer) error {
	filter := o.filter()
	switch {
	case *o.scheduled && *o.deferred:
		return usagef("takes only one of --deferred and --scheduled")
	case *o.scheduled && *o.err != "":
		return usagef("--error is not for --scheduled: those have not been tried yet")
	case *o.scheduled:
		filter.State = outbox.Scheduled
	}
	admin, close, err := o.admin(ctx)
	if err != nil {
		return err
	}
	defer close()
	if *o.summary {
		return o.printSummary(ctx, admin, filter, stdout)
	}
	return o.print(ctx, admin, filter, stdout)
}

// print reads and prints page by page.
func (o outboxListOptions) print(ctx context.Context, admin *outbox.Admin, filter outbox.Filter, stdout io.Writer) error {
	var after outbox.Entry
	for total := 0; ; {
		entries, err := admin.List(ctx, filter, after, page)
		if err != nil {
			return err
		}
		if *o.json {
			err = printJSON(stdout, listedEntries(entries))
		} else {
			err = printEntries(stdout, filter.State, entries, total == 0)
		}
		if total += len(entries); err != nil {
			return err
		}
		if len(entries) < page {
			if *o.json {
				return nil
			}
			return printTotal(stdout, filter, int64(total), "")
		}
		after = entries[len(entries)-1]
	}
}

// printTotal says how many there are, and which were looked for if there are none.
func printTotal(stdout io.Writer, filter outbox.Filter, total int64, groups string) error {
	those := ""
	switch {
	case isAll(filter):
	case total == 1:
		those = " that matches"
	default:
		those = " that match"
	}
	_, err := fmt.Fprintf(stdout, "%s%s%s\n", messages(total, filter.State), those, groups)
	return err
}

// messages is a number of messages of a state.
func messages(n int64, state outbox.State) string {
	if n == 1 {
		return fmt.Sprintf("1 %s message", state)
	}
	return fmt.Sprintf("%d %s messages", n, state)
}

func printEntries(stdout io.Writer, state outbox.State, entries []outbox.Entry, first bool) error {
	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	since := map[outbox.State]string{outbox.Parked: "PARKED", outbox.Deferred: "NEXT ATTEMPT", outbox.Scheduled: "DUE"}[state]
	failed := state != outbox.Scheduled
	if first && len(entries) > 0 {
		fmt.Fprint(table, "ID\tTOPIC\tKEY\tUUID\t", since)
		if failed {
			fmt.Fprint(table, "\tATTEMPTS\tBEHIND\tERROR")
		}
		fmt.Fprintln(table)
	}
	for _, e := range entries {
		fmt.Fprintf(table, "%d\t%s\t%s\t%s\t%s", e.ID, shown(e.Topic), shownKey(e.OrderingKey), shown(e.UUID), shownSince(e.Since))
		if failed {
			fmt.Fprintf(table, "\t%d\t%d\t%s", e.Attempts, e.Behind, oneline.Of(withoutRow(e.Error), mostReason))
		}
		fmt.Fprintln(table)
	}
	return table.Flush()
}

// rowPrefix is where an error names the package, the row and its topic.
var rowPrefix = regexp.MustCompile(`^(?:oncemill: )?(?:jetstream|kafka): outbox row \d+ to "(?:[^"\\]|\\.)*": `)

// withoutRow is an error without what other columns of the table say.
func withoutRow(text string) string { return rowPrefix.ReplaceAllString(text, "") }

// shownKey is an ordering key as --key takes it.
func shownKey(key []byte) string {
	switch {
	case key == nil:
		return "-"
	case len(key) == 0 || string(key) == "-" || strings.HasPrefix(string(key), `"`):
		return fmt.Sprintf("%q", key)
	}
	return shown(string(key))
}

// shownSince is a time of the table. Those that are far away stand for never.
func shownSince(t time.Time) string {
	if t.Year() >= 9999 {
		return "never"
	}
	return t.UTC().Format(time.RFC3339)
}

// A listedEntry is an entry as JSON. Payload and metadata are those of what is dropped.
type listedEntry struct {
	ID          int64     `json:"id"`
	State       string    `json:"state"`
	Topic       string    `json:"topic"`
	UUID        string    `json:"uuid"`
	Key         *string   `json:"key"`          // null: none, or one that is no text
	OrderingKey []byte    `json:"ordering_key"` // the same in base64; null: none
	DedupID     string    `json:"dedup_id"`
	CreatedAt   time.Time `json:"created_at"`
	Attempts    int       `json:"attempts"`
	Since       time.Time `json:"since"`
	Size        int64     `json:"size"`
	Behind      int64     `json:"behind"`
	Error       string    `json:"error"`
}

func listed(e outbox.Entry) listedEntry {
	l := listedEntry{
		ID: e.ID, State: string(e.State), Topic: e.Topic, UUID: e.UUID, OrderingKey: e.OrderingKey, DedupID: e.DedupID, CreatedAt: e.CreatedAt.UTC(),
		Attempts: e.Attempts, Since: e.Since.UTC(), Size: e.Size, Behind: e.Behind, Error: e.Error,
	}
	l.Key = keyText(e.OrderingKey)
	return l
}

// keyText is an ordering key as text, nil if there is none or it is no text.
func keyText(key []byte) *string {
	if text := string(key); key != nil && metadata.IsText(text) {
		return &text
	}
	return nil
}

func listedEntries(entries []outbox.Entry) (all []listedEntry) {
	for _, e := range entries {
		all = append(all, listed(e))
	}
	return all
}

// mostGroups is how many groups a summary shows.
const mostGroups = 100

func (o outboxListOptions) printSummary(ctx context.Context, admin *outbox.Admin, filter outbox.Filter, stdout io.Writer) error {
	found, groups, rows, err := admin.Summary(ctx, filter, mostGroups)
	if err != nil {
		return err
	}
	if *o.json {
		return printJSON(stdout, listedGroups(found))
	}
	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	failed := filter.State != outbox.Scheduled
	switch {
	case len(found) == 0:
	case failed:
		fmt.Fprintln(table, "MESSAGES\tTOPIC\tFIRST\tLAST\tERROR")
	default:
		fmt.Fprintln(table, "MESSAGES\tTOPIC\tFIRST DUE\tLAST DUE")
	}
	for _, g := range found {
		fmt.Fprintf(table, "%d\t%s\t%s\t%s", g.Rows, shown(g.Topic), shownSince(g.First), shownSince(g.Last))
		if failed {
			fmt.Fprintf(table, "\t%s", oneline.Of(withoutRow(g.Error), mostReason))
		}
		fmt.Fprintln(table)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	note := ""
	if n := groups - int64(len(found)); n > 0 {
		note = fmt.Sprintf("; %d smaller groups are not shown", n)
	}
	return printTotal(stdout, filter, rows, note)
}

// A listedGroup is a group as JSON.
type listedGroup struct {
	Topic    string    `json:"topic"`
	Error    string    `json:"error"`
	Messages int64     `json:"messages"`
	First    time.Time `json:"first"`
	Last     time.Time `json:"last"`
}

func listedGroups(found []outbox.Group) (all []listedGroup) {
	for _, g := range found {
		all = append(all, listedGroup{g.Topic, g.Error, g.Rows, g.First.UTC(), g.Last.UTC()})
	}
	return all
}
