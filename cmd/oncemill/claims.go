package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/dbcheck"
	"github.com/oncemill/oncemill/internal/oneline"
	"github.com/oncemill/oncemill/schema"
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

All claims, oncemill claims list lists; all about one key, oncemill claims show
tells, and what happened to it, oncemill claims events. Old ones go by oncemill
claims purge, if no program of yours purges.

With --blocked it sums up what did not happen a second time: claims that were
refused because their key was taken, and of how many effects. The amount of each of
those counts once.

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
	f.onlyHere("in-doubt", "blocked")
	return func(ctx context.Context, stdout, _ io.Writer) error { return o.run(ctx, stdout) }
}

func (o claimsOptions) run(ctx context.Context, stdout io.Writer) error {
	switch {
	case *o.inDoubt && *o.blocked:
		return usagef("takes only one of --in-doubt and --blocked")
	case !*o.inDoubt && !*o.blocked:
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
	if err := dbcheck.Check(ctx, db, *d.schema); err != nil { // an operator may not claim, as Inbox.Check wants it
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
		return printNothing(ctx, inbox, stdout, *o.consumer, "nothing", fmt.Sprintf("was blocked in the last %v", *o.since))
	}
	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "CONSUMER\tBLOCKED\tEFFECTS\tAMOUNT\tCURRENCY")
	for _, b := range all {
		if b.Amount == "0" && b.Currency == "" {
			b.Amount = "" // none was given
		}
		fmt.Fprintf(table, "%s\t%d\t%d\t%s\t%s\n", shown(b.Consumer), b.Claims, b.Effects, shown(b.Amount), shown(b.Currency))
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
			if total == 0 && !*o.json && err == nil {
				return printNothing(ctx, inbox, stdout, *o.consumer, "nothing", "is in doubt")
			}
			return err
		}
		after = claims[len(claims)-1]
	}
}

// printNothing says that there is nothing to list, of which consumer, and whether there is such
// a consumer.
func printNothing(ctx context.Context, inbox *oncemill.Inbox, stdout io.Writer, consumer, what, does string) error {
	if consumer == "" {
		_, err := fmt.Fprintf(stdout, "%s %s\n", what, does)
		return err
	}
	unknown := ""
	known, err := isKnown(ctx, inbox, consumer)
	if err != nil {
		return err
	}
	if !known {
		unknown = ": it has no claims and no events at all (is that its name?)"
	}
	_, err = fmt.Fprintf(stdout, "%s of consumer %s %s%s\n", what, shown(consumer), does, unknown)
	return err
}

// isKnown reports whether there is a claim or an event of a consumer.
func isKnown(ctx context.Context, inbox *oncemill.Inbox, consumer string) (known bool, err error) {
	tables := schema.Quote(inbox.Schema)
	err = inbox.DB.QueryRowContext(ctx, `
SELECT EXISTS (SELECT FROM `+tables+`.claims WHERE consumer = $1) OR EXISTS (SELECT FROM `+tables+`.events WHERE consumer = $1)`,
		consumer).Scan(&known)
	return known, err
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
