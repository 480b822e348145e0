package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/user"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/oneline"
)

var claimsCommand = command{
	name:    "claims",
	summary: "list the effects that are in doubt, or sum up what was blocked",
	help: `
List the claims whose effects are in doubt: an attempt at an e-mail, a charge or
an order has ended, and nobody knows whether it happened.

  oncemill claims --in-doubt

Find out at the provider, by the column PROVIDER KEY, what became of each, and
then tell with oncemill claims resolve. Those that a resolver still asks about are
listed too.

What happened to one key, oncemill claims events shows.

With --blocked it sums up what did not happen a second time: claims that were
refused because their key was taken.

  oncemill claims --blocked --since 24h`,
	prepare: prepareClaims,
}

// claimsOptions are the flags of the command claims.
type claimsOptions struct {
	database
	inDoubt, blocked *bool
	consumer         *string
	since            *time.Duration
	json             *bool
}

func prepareClaims(f *flags) action {
	o := claimsOptions{
		database: f.database(),
		inDoubt:  f.toggle("in-doubt", "list the claims that are in doubt"),
		blocked:  f.toggle("blocked", "sum up the claims that were refused, by consumer and currency"),
		consumer: f.text("consumer", "NAME", "of this consumer only (default: of all)"),
		since:    f.duration("since", 24*time.Hour, "how far --blocked looks back"),
		json:     f.toggle("json", "write a JSON object a line instead of a table"),
	}
	return func(ctx context.Context, stdout, _ io.Writer) error { return o.run(ctx, stdout) }
}

func (o claimsOptions) run(ctx context.Context, stdout io.Writer) error {
	if *o.inDoubt == *o.blocked {
		return usagef("needs one of --in-doubt and --blocked")
	}
	inbox, close, err := o.inbox(ctx)
	if err != nil {
		return err
	}
	defer close()
	if *o.blocked {
		return o.printBlocked(ctx, inbox, stdout)
	}
	return o.printInDoubt(ctx, inbox, stdout)
}

// inbox opens the database and checks it.
func (d database) inbox(ctx context.Context) (in *oncemill.Inbox, close func(), err error) {
	connector, err := d.connector()
	if err != nil {
		return nil, nil, err
	}
	db := sql.OpenDB(connector)
	in = &oncemill.Inbox{DB: db, Schema: *d.schema}
	if err := in.Check(ctx); err != nil {
		db.Close()
		return nil, nil, err
	}
	return in, func() { db.Close() }, nil
}

func (o claimsOptions) printBlocked(ctx context.Context, inbox *oncemill.Inbox, stdout io.Writer) error {
	now := time.Now()
	all, err := inbox.Blocked(ctx, *o.consumer, now.Add(-*o.since), now.Add(time.Minute)) // its clock may be ahead
	if err != nil {
		return err
	}
	if *o.json {
		return printJSON(stdout, all)
	}
	if len(all) == 0 {
		_, err := fmt.Fprintf(stdout, "nothing was blocked in the last %v\n", *o.since)
		return err
	}
	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "CONSUMER\tBLOCKED\tAMOUNT\tCURRENCY")
	for _, b := range all {
		fmt.Fprintf(table, "%s\t%d\t%s\t%s\n", shown(b.Consumer), b.Claims, b.Amount, shown(b.Currency))
	}
	return table.Flush()
}

// page is how many claims are read at a time.
const page = 500

func (o claimsOptions) printInDoubt(ctx context.Context, inbox *oncemill.Inbox, stdout io.Writer) error {
	var after oncemill.InDoubt
	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	for total := 0; ; {
		claims, err := inbox.InDoubt(ctx, *o.consumer, after, page)
		if err != nil {
			return err
		}
		if *o.json {
			err = printJSON(stdout, questions(claims))
		} else {
			err = printDoubts(table, claims, total == 0)
		}
		if total += len(claims); err != nil {
			return err
		}
		if len(claims) < page {
			if total == 0 && !*o.json {
				_, err = fmt.Fprintln(stdout, "nothing is in doubt")
			}
			return err
		}
		after = claims[len(claims)-1]
	}
}

func questions(claims []oncemill.InDoubt) (all []question) {
	for _, d := range claims {
		all = append(all, question{d, d.ProviderKey()})
	}
	return all
}

func printDoubts(table *tabwriter.Writer, claims []oncemill.InDoubt, first bool) error {
	if first && len(claims) > 0 {
		fmt.Fprintln(table, "CONSUMER\tKEY\tTOKEN\tSINCE\tATTEMPTS\tAMOUNT\tMESSAGE\tASKED\tPROVIDER KEY\tREASON")
	}
	for _, d := range claims {
		message := "not parked"
		if d.Message != nil {
			message = "parked"
		}
		asked := strconv.Itoa(d.Asked)
		if d.GivenUp {
			asked += ", given up"
		}
		fmt.Fprintf(table, "%s\t%s\t%d\t%s\t%d\t%s\t%s\t%s\t%s\t%s\n", shown(d.Consumer), shown(d.Key), d.Token, d.Since.UTC().Format(time.RFC3339),
			d.Attempts, shownAmount(d.Amount, d.Currency), message, asked, d.ProviderKey(), oneline.Of(d.Reason, mostReason))
	}
	return table.Flush()
}

// shown quotes what a terminal would not show as it is, or would split.
func shown(s string) string {
	if s == "" {
		return "-"
	}
	if quoted := strconv.Quote(s); len(quoted) != len(s)+2 || strings.ContainsRune(s, ' ') {
		return quoted
	}
	return s
}

// shownAmount is an amount with its currency.
func shownAmount(amount, currency string) string {
	if amount == "" {
		return "-"
	}
	return strings.TrimSpace(amount + " " + oneline.Of(currency, mostReason))
}

// What a column of a table holds at most: a reason among others, and a note at the end of
// a line.
const (
	mostReason = 120
	mostNote   = 8 << 10
)

func printJSON[T any](w io.Writer, all []T) error {
	encoder := json.NewEncoder(w)
	for _, one := range all {
		if err := encoder.Encode(one); err != nil {
			return err
		}
	}
	return nil
}

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

func printEvents(ctx context.Context, d database, name, key string, asJSON bool, stdout io.Writer) error {
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
			for _, e := range events {
				fmt.Fprintf(table, "%s\t%s\t%d\t%s\t%s\t%s\n", e.At.UTC().Format(time.RFC3339Nano), e.Kind, e.Token,
					shownAmount(e.Amount, e.Currency), shown(e.Actor), oneline.Of(e.Note, mostNote))
			}
			err = table.Flush()
		}
		if err != nil || len(events) < page {
			return err
		}
		after = events[len(events)-1].ID
	}
}

// consumer opens the database for one consumer.
func (d database) consumer(ctx context.Context, name string, logger *slog.Logger) (c *oncemill.Consumer, close func(), err error) {
	if name == "" || len(name) > 512 || strings.ContainsRune(name, 0) || strings.ToValidUTF8(name, "") != name {
		return nil, nil, usagef("CONSUMER is %q: must be 1 to 512 bytes of UTF-8 without NUL", name)
	}
	inbox, close, err := d.inbox(ctx)
	if err != nil {
		return nil, nil, err
	}
	inbox.Logger = logger
	return inbox.Consumer(name), close, nil
}

var claimsResolveCommand = command{
	name:    "claims resolve",
	summary: "say what became of an effect that is in doubt",
	args:    []string{"CONSUMER", "KEY"},
	help: `
Say what became of an effect that is in doubt. Look at the provider first, by the
provider key that oncemill claims --in-doubt shows.

  oncemill claims resolve payments order-7 --happened --note 'pi_123 in the dashboard'
  oncemill claims resolve payments order-7 --not-happened --note 'no such payment, asked support'
  oncemill claims resolve payments order-7 --never --note 'customer has withdrawn'

--happened settles the claim. Rows that the handler would have written with it are
not written: that is for your own program, with Consumer.ResolveWith.
--not-happened releases it: the parked message goes back to its topic, through the
outbox and a relay, and the effect is made again.
--never settles it as failed.

It fails if there was another attempt since --token, or if one is under way.`,
	prepare: prepareClaimsResolve,
}

// claimsResolveOptions are the flags of the command claims resolve.
type claimsResolveOptions struct {
	database
	happened, notHappened, never *bool
	note, by, result             *string
	token                        *int
}

func prepareClaimsResolve(f *flags) action {
	o := claimsResolveOptions{
		database:    f.database(),
		happened:    f.toggle("happened", "the effect is there"),
		notHappened: f.toggle("not-happened", "it is not there, and can no longer come by itself"),
		never:       f.toggle("never", "it is not there, and shall not be made"),
		note:        f.text("note", "TEXT", "how you know; required, kept in the events"),
		by:          f.text("by", "NAME", "who says so (default: this user and host)"),
		result:      f.text("result", "TEXT", "what the claim is settled with, for those who ask again; with --happened"),
		token:       new(int),
	}
	f.add("token", "N", "the claim's token as it was listed (default: whatever it is now)", func(value string) (err error) {
		if *o.token, err = strconv.Atoi(value); err != nil || *o.token < 1 {
			return fmt.Errorf("want a token as it is listed, a whole number above 0")
		}
		return nil
	})
	return func(ctx context.Context, stdout, _ io.Writer) error { return o.run(ctx, f.args[0], f.args[1], stdout) }
}

func (o claimsResolveOptions) verdict() (v oncemill.Verdict, err error) {
	n := 0
	for verdict, given := range map[oncemill.Verdict]bool{
		oncemill.Happened: *o.happened, oncemill.NotHappened: *o.notHappened, oncemill.Never: *o.never,
	} {
		if given {
			v, n = verdict, n+1
		}
	}
	switch {
	case n != 1:
		return "", usagef("needs one of --happened, --not-happened and --never")
	case strings.TrimSpace(*o.note) == "":
		return "", usagef("needs --note: say how you know, for whoever asks later")
	case *o.result != "" && v != oncemill.Happened:
		return "", usagef("--result goes with --happened")
	}
	return v, nil
}

func (o claimsResolveOptions) run(ctx context.Context, name, key string, stdout io.Writer) error {
	verdict, err := o.verdict()
	if err != nil {
		return err
	}
	consumer, close, err := o.consumer(ctx, name, nil)
	if err != nil {
		return err
	}
	defer close()
	held, err := consumer.Held(ctx, key)
	switch {
	case err != nil:
		return err
	case held == nil:
		return fmt.Errorf("there is no claim of key %q of consumer %q: nothing is in doubt about it (oncemill claims --in-doubt lists what is)", key, name)
	case held.Outcome != "":
		return fmt.Errorf("key %q of consumer %q is not in doubt: it has ended, with the outcome %s", key, name, held.Outcome)
	}
	resolution := oncemill.Resolution{Verdict: verdict, Note: *o.note, Actor: o.actor()}
	if *o.result != "" {
		resolution.Result = []byte(*o.result)
	}
	token := held.Token
	if *o.token > 0 {
		token = int64(*o.token)
	}
	if err := consumer.ResolveWith(ctx, key, token, resolution); err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "%s %s: %s\n", shown(name), shown(key), map[oncemill.Verdict]string{
		oncemill.Happened:    "settled",
		oncemill.NotHappened: "released; if its message was parked, it is in the outbox now, for a relay to send",
		oncemill.Never:       "settled as failed",
	}[verdict])
	return err
}

func (o claimsResolveOptions) actor() string {
	if *o.by != "" {
		return *o.by
	}
	name, host := "unknown", "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if h, err := os.Hostname(); err == nil {
		host = h
	}
	return name + "@" + host
}
