package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/oncemill/oncemill/outbox"
)

var outboxCommand = command{
	name:    "outbox",
	summary: "say how many messages wait, are parked, scheduled or kept",
	help: `
Say how many messages are in the tables of the outbox.

  oncemill outbox

It counts up to 100000 rows of each table, and estimates what is more, so that it takes
a moment however many there are. To deal with those that relays have given up, and with
those that are to be sent later:

  oncemill outbox list      lists what is parked, deferred or scheduled
  oncemill outbox retry     has parked messages tried again
  oncemill outbox drop      deletes parked messages
  oncemill outbox cancel    takes back a scheduled message
  oncemill outbox replay    publishes again what was published, if relays keep it`,
	prepare: func(f *flags) action {
		db := f.database()
		asJSON := f.toggle("json", "write a JSON object instead of a table")
		return func(ctx context.Context, stdout, _ io.Writer) error {
			admin, close, err := db.admin(ctx)
			if err != nil {
				return err
			}
			defer close()
			return printStatus(ctx, admin, *asJSON, stdout)
		}
	},
}

// admin opens the database and checks it.
func (d database) admin(ctx context.Context) (a *outbox.Admin, close func(), err error) {
	connector, err := d.connector()
	if err != nil {
		return nil, nil, err
	}
	db := sql.OpenDB(connector)
	a = &outbox.Admin{DB: db, Schema: *d.schema}
	if err := a.Check(ctx); err != nil {
		db.Close()
		return nil, nil, err
	}
	return a, func() { db.Close() }, nil
}

func printStatus(ctx context.Context, admin *outbox.Admin, asJSON bool, stdout io.Writer) error {
	s, err := admin.Status(ctx)
	if err != nil {
		return err
	}
	if asJSON {
		return printStatusJSON(s, stdout)
	}
	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	line := func(name string, c *outbox.Count, note string) {
		if note != "" {
			note = "\t" + note
		}
		fmt.Fprintf(table, "%s\t%s%s\n", name, shownCount(c), note)
	}
	fmt.Fprintln(table, "MESSAGES\tCOUNT")
	line("waiting", &s.Waiting, moment("the oldest is from", s.Oldest, s.At))
	line("deferred", &s.Deferred, "")
	line("parked", &s.Parked, "")
	line("scheduled", s.Scheduled, moment("the next is due", s.NextDue, s.At))
	line("kept", s.Published, moment("the oldest was published", s.Kept, s.At))
	return table.Flush()
}

func shownCount(c *outbox.Count) string {
	switch {
	case c == nil:
		return "none before schema version 6 (run oncemill migrate)"
	case c.Accuracy == outbox.Estimate:
		return fmt.Sprintf("about %d (estimated)", c.Rows)
	case c.Accuracy == outbox.AtLeast:
		return fmt.Sprintf("%d or more (only 100000 were looked at)", c.Rows)
	}
	return fmt.Sprint(c.Rows)
}

// moment is what happens at a time, and how far that is from now.
func moment(what string, t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	if d := t.Sub(now).Round(time.Second); d > 0 {
		return fmt.Sprintf("%s %s (in %v)", what, t.UTC().Format(time.RFC3339), d)
	}
	return fmt.Sprintf("%s %s (%v ago)", what, t.UTC().Format(time.RFC3339), now.Sub(t).Round(time.Second))
}

func printStatusJSON(s outbox.Status, stdout io.Writer) error {
	optional := func(t time.Time) *time.Time {
		if t.IsZero() {
			return nil
		}
		t = t.UTC()
		return &t
	}
	return json.NewEncoder(stdout).Encode(struct {
		Waiting   outbox.Count  `json:"waiting"`
		Oldest    *time.Time    `json:"oldest"` // null: there is none
		Deferred  outbox.Count  `json:"deferred"`
		Parked    outbox.Count  `json:"parked"`
		Scheduled *outbox.Count `json:"scheduled"` // null: before schema version 6
		NextDue   *time.Time    `json:"next_due"`
		Kept      *outbox.Count `json:"kept"`
		KeptSince *time.Time    `json:"kept_since"`
		At        time.Time     `json:"at"`
	}{s.Waiting, optional(s.Oldest), s.Deferred, s.Parked, s.Scheduled, optional(s.NextDue), s.Published, optional(s.Kept), s.At.UTC()})
}
