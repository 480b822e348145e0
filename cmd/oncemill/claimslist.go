package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/oneline"
)

var claimsListCommand = command{
	name:    "claims list",
	summary: "list claims, the newest first",
	help: `
List claims: those that are not settled yet first, of all consumers, then the others,
consumer by consumer, the newest first. With --key they come in the order of their keys
instead.

  oncemill claims list --consumer billing --limit 20
  oncemill claims list --consumer payments --outcome unsettled
  oncemill claims list --consumer billing --outcome dead --since 24h
  oncemill claims list --key order-2026-11- --json

The column STATE is the outcome, settled, dead (given up, with a dead letter) or
failed, or else in flight or in doubt. TOKEN and ATTEMPTS are those of effects
outside of Postgres, 0 for claims of Once.

A page is read at a time, along an index, so it can be run beside any load. But dead
and failed ones are few among many: --outcome dead or failed reads all claims of the
time, or of the prefix, to find them. Give it a --since.

A message whose handler fails has no claim yet. With --failing it lists those, the last
ones first: how often, and the last error. What was handled since is left out.

  oncemill claims list --failing

All about one of them, oncemill claims show tells.`,
	prepare: prepareClaimsList,
}

// claimsListOptions are the flags of the command claims list.
type claimsListOptions struct {
	database
	consumer, key, outcome *string
	since                  *time.Duration
	limit                  *int
	failing, json          *bool
}

func prepareClaimsList(f *flags) action {
	o := claimsListOptions{
		database: f.database(),
		consumer: f.text("consumer", "NAME", "of this consumer only (default: of all, by name)"),
		key:      f.text("key", "PREFIX", "only keys that begin with this, in their order"),
		outcome:  f.choice("outcome", "only claims with this outcome, or those without one", "any", "settled", "dead", "failed", "unsettled"),
		since:    new(time.Duration),
		limit:    f.count("limit", 100, "the most claims to list"),
		failing:  f.toggle("failing", "the messages whose handlers have failed, in place of claims"),
		json:     f.toggle("json", "write a JSON object a line instead of a table"),
	}
	f.onlyHere("failing")
	f.add("since", "TIME", "only those settled, or if they are not, first claimed, or that failed, so lately,\nsuch as 24h (default: all)", func(value string) (err error) {
		if *o.since, err = time.ParseDuration(value); err != nil || *o.since <= 0 {
			return errors.New("want a time above 0 with its unit, such as 30m or 24h")
		}
		return nil
	})
	return func(ctx context.Context, stdout, stderr io.Writer) error { return o.run(ctx, stdout, stderr) }
}

func (o claimsListOptions) run(ctx context.Context, stdout, stderr io.Writer) error {
	if *o.failing && (*o.key != "" || *o.outcome != "any") {
		return usagef("--key and --outcome are for claims: leave them out with --failing")
	}
	inbox, close, err := o.inbox(ctx)
	if err != nil {
		return err
	}
	defer close()
	if *o.failing {
		return o.listFailing(ctx, inbox, stdout, stderr)
	}
	l := &claimsLister{
		claimsReader: newClaimsReader(inbox), prefix: *o.key, outcome: *o.outcome, since: *o.since, left: *o.limit,
		print: o.printer(stdout),
	}
	if *o.consumer != "" {
		err = l.list(ctx, *o.consumer)
	} else {
		err = l.listAll(ctx)
	}
	switch {
	case err != nil:
		return err
	case l.left == *o.limit && !*o.json:
		return printNothing(ctx, inbox, stdout, *o.consumer, "no claims", "match")
	case l.left == 0:
		_, err = fmt.Fprintf(stderr, "these are the first %d: there may be more (--limit)\n", *o.limit)
	}
	return err
}

// printer returns what prints a page.
func (o claimsListOptions) printer(stdout io.Writer) func([]listedClaim) error {
	if *o.json {
		return func(claims []listedClaim) error { return printJSON(stdout, claims) }
	}
	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	first := true
	return func(claims []listedClaim) error {
		if first && len(claims) > 0 {
			fmt.Fprintln(table, "CONSUMER\tKEY\tSTATE\tSINCE\tTOKEN\tATTEMPTS\tAMOUNT\tREASON")
			first = false
		}
		for i := range claims {
			c := &claims[i]
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\n", shown(c.Consumer), shown(c.Key), c.State, timeOrDash(c.since()),
				c.Token, c.Attempts, shownAmount(c.Amount, c.Currency), shownReason(c.Reason))
		}
		return table.Flush()
	}
}

func timeOrDash(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

func shownReason(reason string) string {
	if reason == "" {
		return "-"
	}
	return oneline.Of(reason, mostReason)
}

// The states of a claim.
const (
	stateFree     = "free" // there is none
	stateInFlight = "in flight"
	stateInDoubt  = "in doubt"
	stateSettled  = string(oncemill.Settled)
	stateDead     = string(oncemill.Dead)
	stateFailed   = string(oncemill.Failed)
)

// A listedClaim is a row of the table claims.
type listedClaim struct {
	Consumer string `json:"consumer"`
	Key      string `json:"key"` // as the message has it; for one of more than 512 bytes, what stands for it in the table
	State    string `json:"state"`

	SettledAt    time.Time `json:"settled_at,omitzero"`
	FirstClaimed time.Time `json:"first_claimed,omitzero"` // of an effect outside, like what follows up to Currency
	LeaseUntil   time.Time `json:"lease_until,omitzero"`
	InDoubtSince time.Time `json:"in_doubt_since,omitzero"`
	Token        int64     `json:"token,omitempty"`
	Attempts     int       `json:"attempts,omitempty"`
	Action       string    `json:"action,omitempty"`
	Agent        string    `json:"agent,omitempty"`
	Amount       string    `json:"amount,omitempty"`
	Currency     string    `json:"currency,omitempty"`
	Reason       string    `json:"reason,omitempty"`
	Fingerprint  hexBytes  `json:"fingerprint,omitempty"`

	stored string
}

// since is when the claim came into its state.
func (c *listedClaim) since() time.Time {
	switch c.State {
	case stateInFlight:
		return c.FirstClaimed
	case stateInDoubt:
		return c.InDoubtSince
	}
	return c.SettledAt
}

// hexBytes are written as hexadecimal digits.
type hexBytes []byte

func (b hexBytes) String() string { return hex.EncodeToString(b) }

// MarshalJSON is for encoding/json.
func (b hexBytes) MarshalJSON() ([]byte, error) { return strconv.AppendQuote(nil, b.String()), nil }
