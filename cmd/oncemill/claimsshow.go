package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/hint"
	"github.com/oncemill/oncemill/internal/oneline"
)

var claimsShowCommand = command{
	name:    "claims show",
	summary: "show all there is about one key",
	args:    []string{"CONSUMER", "KEY"},
	help: `
Show all there is about one key of a consumer: its claim, the errors of its handler,
the message that is parked beside it, the last things that happened to it, and what
becomes of a message with this key that is delivered now.

  oncemill claims show billing order-7
  oncemill claims show --json -- billing -7

A key that is free is no mistake: it says so, and exits with 0.`,
	prepare: func(f *flags) action {
		d := f.database()
		asJSON := f.toggle("json", "write one JSON object; payload and result are in base64, the fingerprint in hexadecimal")
		return func(ctx context.Context, stdout, _ io.Writer) error {
			return showClaim(ctx, d, f.args[0], f.args[1], *asJSON, stdout)
		}
	},
}

func showClaim(ctx context.Context, d database, name, key string, asJSON bool, stdout io.Writer) error {
	if key == "" {
		return errNoKey
	}
	consumer, close, err := d.consumer(ctx, name, nil)
	if err != nil {
		return err
	}
	defer close()
	s, err := readShown(ctx, consumer, key)
	if err != nil {
		return err
	}
	s.Redelivery = s.redelivery()
	if asJSON {
		return json.NewEncoder(stdout).Encode(s)
	}
	return s.print(stdout, *d.schema)
}

// A shownClaim is all there is about one key.
type shownClaim struct {
	listedClaim
	StoredKey   string    `json:"stored_key"` // what the tables have for it
	EffectUntil time.Time `json:"effect_until,omitzero"`
	AskAfter    time.Time `json:"ask_after,omitzero"`
	GivenUp     bool      `json:"given_up,omitempty"` // by the resolver
	Asked       int       `json:"asked,omitempty"`
	Scope       string    `json:"scope,omitempty"`
	Result      []byte    `json:"result,omitempty"`
	ProviderKey string    `json:"provider_key,omitempty"`

	Errors       *shownErrors            `json:"handler_errors,omitempty"`
	Message      *oncemill.ParkedMessage `json:"message,omitempty"`
	PurgedBefore time.Time               `json:"purged_before,omitzero"` // of the consumer
	Redelivery   string                  `json:"redelivery"`
	Events       []oncemill.Event        `json:"events"` // the last ones, the oldest first

	known bool // there is something of the consumer
}

// shownErrors are the errors of a handler with a message that has no claim yet.
type shownErrors struct {
	Errors int       `json:"errors"`
	Last   string    `json:"last"`
	LastAt time.Time `json:"last_at"`
}

// redelivery says what becomes of a message with this key that is delivered now.
func (s *shownClaim) redelivery() string {
	var says string
	switch s.State {
	case stateFree:
		return s.ofFree()
	case stateInFlight:
		return fmt.Sprintf("It waits: it is given back, and comes again, until the lease is over (%s) or the claim is settled.", timeOrDash(s.LeaseUntil))
	case stateInDoubt:
		return s.ofDoubt()
	case stateDead:
		says = "It is acknowledged and does not run: a message with this key was given up, and its dead letter sent."
	case stateFailed:
		says = "It is acknowledged and does not run: the effect has failed for good."
	default:
		says = "It is acknowledged as a duplicate, and does not run."
	}
	return says + s.ofFingerprint()
}

func (s *shownClaim) ofFree() string {
	says := "It runs: the key is free."
	if s.Errors != nil {
		says = fmt.Sprintf("It runs, after %d errors of the handler: consumers.Stack gives a message up at its MaxErrors.", s.Errors.Errors)
	}
	if !s.PurgedBefore.IsZero() {
		says += fmt.Sprintf(" But one from before %s is refused as too old: its claim may have been purged.", timeOrDash(s.PurgedBefore))
	}
	return says
}

func (s *shownClaim) ofDoubt() string {
	says := "It is acknowledged and parked beside the claim, until the doubt is resolved."
	if s.Message != nil {
		says = "It is acknowledged: one is parked already, until the doubt is resolved."
	}
	return says + " A Guard whose KeyLifetime, from the first claim on, is not over tries again instead, with the same provider key." + s.ofFingerprint()
}

func (s *shownClaim) ofFingerprint() string {
	if len(s.Fingerprint) == 0 {
		return ""
	}
	return " One with another fingerprint is refused: the key was used twice."
}

func (s *shownClaim) print(stdout io.Writer, schemaName string) error {
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%s\t%s\n", name, value)
		}
	}
	at := func(name string, t time.Time) {
		if !t.IsZero() {
			line(name, t.UTC().Format(time.RFC3339Nano))
		}
	}
	line("consumer", shown(s.Consumer))
	line("key", shown(s.Key))
	if s.StoredKey != s.Key {
		line("in the tables", s.StoredKey)
	}
	line("state", s.State)
	at("settled", s.SettledAt)
	s.printEffect(line, at)
	line("fingerprint", s.Fingerprint.String())
	if s.Errors != nil {
		line("handler errors", fmt.Sprintf("%d, the last at %s: %s", s.Errors.Errors, timeOrDash(s.Errors.LastAt), oneline.Of(s.Errors.Last, mostNote)))
	}
	if m := s.Message; m != nil {
		line("parked message", fmt.Sprintf("%s of topic %s, %d bytes: %s", shown(m.UUID), shown(m.Topic), len(m.Payload), text(m.Payload)))
	}
	at("purged before", s.PurgedBefore)
	line("if it comes now", s.Redelivery)
	if s.State == stateInDoubt {
		line("to resolve it", hint.Resolve(schemaName, s.Consumer, s.Key, s.Token)+" --happened|--not-happened|--never --note ...")
	}
	if s.State == stateFree && !s.known {
		line("but", "the consumer has no claims and no events at all: is that its name?")
	}
	if err := w.Flush(); err != nil || len(s.Events) == 0 {
		return err
	}
	last := "last event"
	if n := len(s.Events); n > 1 {
		last = fmt.Sprintf("last %d events", n)
	}
	fmt.Fprintf(w, "\nthe %s (oncemill claims events has all of them)\n", last)
	return printEventRows(w, s.Events, true)
}

// printEffect prints what a claim of an effect outside of Postgres has besides.
func (s *shownClaim) printEffect(line func(name, value string), at func(string, time.Time)) {
	if s.Token == 0 {
		return
	}
	at("first claimed", s.FirstClaimed)
	at("lease until", s.LeaseUntil)
	at("effect until", s.EffectUntil)
	at("in doubt since", s.InDoubtSince)
	line("reason", oneline.Of(s.Reason, mostNote))
	line("token", fmt.Sprint(s.Token))
	line("attempts", fmt.Sprint(s.Attempts))
	if s.State == stateInDoubt {
		asked := fmt.Sprintf("%d times", s.Asked)
		if s.GivenUp {
			asked += ", given up: it is for a person"
		}
		line("resolver asked", asked)
		at("asks again after", s.AskAfter)
	}
	for _, about := range []struct{ name, value string }{{"action", s.Action}, {"agent", s.Agent}, {"scope", s.Scope}} {
		if about.value != "" {
			line(about.name, shown(about.value))
		}
	}
	if s.Amount != "" {
		line("amount", shownAmount(s.Amount, s.Currency))
	}
	line("result", text(s.Result))
	line("provider key", s.ProviderKey)
}

// text is what was sent, as a line, or in base64 where it is no text.
func text(b []byte) string {
	if utf8.Valid(b) && !strings.ContainsRune(string(b), 0) {
		return oneline.Of(string(b), mostNote)
	}
	return "base64 " + oneline.Of(base64.StdEncoding.EncodeToString(b), mostNote)
}
