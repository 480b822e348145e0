package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/examples/internal/crew"
)

// A verdict is what the checker finds. Each order is one of the first five.
type verdict struct {
	Happened    int // the ledger has exactly one effect, and the claim is settled
	Failed      int // the ledger has none, and the claim has failed
	InDoubt     int // the claim is in doubt, and listed; the ledger has one effect or none
	Twice       int // the ledger has more than one effect
	Unexplained int // anything else; what belongs to no order counts too

	Orders   int // in the topic, without those that came again
	Messages int // in the topic
	Attempts int // at effects, by the claims' events
	Resolved int // by a resolver

	Sent   int      // of those in doubt: the ledger has the effect
	Why    []string // what is wrong, the first few
	Doubts []doubt  // the first few
}

// A doubt is a claim in doubt, as `oncemill claims --in-doubt` lists it.
type doubt struct {
	Key         string
	Token       int64
	Attempts    int
	ProviderKey string
	Reason      string
}

const (
	shownProblems = 20
	shownDoubts   = 3
)

// check is the checker. It looks only at the provider's ledger, at what is in Postgres
// and at the topics, and believes none of the workers. It says its verdict, as JSON, and
// fails if it is not what was promised.
func check(ctx context.Context, s setting) error {
	f, err := readFacts(ctx, s)
	if err != nil {
		return err
	}
	v := f.judge(s.kind())
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	crew.Say(string(text))
	return v.broken(s)
}

// broken returns an error if a promise is.
func (v verdict) broken(s setting) error {
	switch {
	case v.Twice > 0:
		return fmt.Errorf("%d orders had their effect twice: that is a bug", v.Twice)
	case v.Unexplained > 0:
		return fmt.Errorf("%d things cannot be explained: that is a bug", v.Unexplained)
	case s.kind().asks && v.InDoubt > 0:
		return fmt.Errorf("%d orders are in doubt, though the provider can be asked", v.InDoubt)
	case s.kind().asks && v.Failed > 0:
		return fmt.Errorf("%d orders have failed, though no card was declined", v.Failed)
	case v.Happened+v.Failed+v.InDoubt != s.Messages:
		return fmt.Errorf("%d orders were to be sent, but the checker has found %d", s.Messages, v.Happened+v.Failed+v.InDoubt)
	}
	return nil
}

// judge compares everything that is known of every order.
func (f *facts) judge(k *kind) (v verdict) {
	v.Orders, v.Messages, v.Attempts, v.Resolved = len(f.orders), f.messages, f.attempts, f.resolved
	for _, order := range slices.SortedFunc(maps.Keys(f.orders), byNumber) {
		v.add(order, f.judgeOrder(order, k), f)
	}
	for _, stray := range f.strays() {
		v.problem("%s belongs to no order", stray)
	}
	return v
}

func byNumber(a, b string) int { return numberOf(a) - numberOf(b) }

func (v *verdict) problem(format string, args ...any) {
	v.Unexplained++
	v.explain(fmt.Sprintf(format, args...))
}

func (v *verdict) explain(why string) {
	if len(v.Why) < shownProblems {
		v.Why = append(v.Why, why)
	}
}

// add counts an order, unless something is wrong with it.
func (v *verdict) add(order, wrong string, f *facts) {
	effects := f.effects[order]
	switch {
	case len(effects) > 1:
		v.Twice++
		v.explain(fmt.Sprintf("%s: the ledger has %d effects", order, len(effects)))
	case wrong != "":
		v.problem("%s: %s", order, wrong)
	case f.claims[order] == oncemill.Settled:
		v.Happened++
	case f.claims[order] == oncemill.Failed:
		v.Failed++
	default:
		v.InDoubt++
		v.Sent += len(effects)
		if d := f.doubts[order]; len(v.Doubts) < shownDoubts {
			v.Doubts = append(v.Doubts, doubt{d.Key, d.Token, d.Attempts, d.ProviderKey(), d.Reason})
		}
	}
}

// judgeOrder returns what is wrong with an order that has at most one effect.
func (f *facts) judgeOrder(order string, k *kind) (wrong string) {
	outcome, claimed := f.claims[order]
	switch {
	case !claimed:
		return "there is no claim"
	case outcome == oncemill.Settled:
		return f.judgeSettled(order, k)
	case outcome == oncemill.Failed, outcome == "":
		if n := len(f.records[order]) + f.receipts[order] + f.settlements[order]; n > 0 {
			return "it is not settled, and has a row, a receipt or an event that says so"
		}
	default:
		return "its claim is " + string(outcome)
	}
	if outcome == oncemill.Failed {
		if len(f.effects[order]) > 0 {
			return "its claim has failed, and the ledger has its effect"
		}
		return ""
	}
	if d, listed := f.doubts[order]; !listed {
		return "its claim is not settled, and not listed as in doubt"
	} else if !k.asks && d.Message == nil {
		return "its claim is in doubt, and its message not parked"
	}
	return f.judgeEffect(order, k)
}

// judgeEffect compares what the ledger has, if it has, with the order.
func (f *facts) judgeEffect(order string, k *kind) (wrong string) {
	for _, e := range f.effects[order] {
		if want := oncemill.ProviderKey(k.consumer, order); e.Key != want {
			return fmt.Sprintf("the ledger has it under the key %s, not %s", e.Key, want)
		}
		if e.Amount != f.orders[order] {
			return fmt.Sprintf("the ledger has the amount %d, the order %d", e.Amount, f.orders[order])
		}
	}
	return ""
}

func (f *facts) judgeSettled(order string, k *kind) (wrong string) {
	effects, records := f.effects[order], f.records[order]
	switch {
	case len(effects) == 0:
		return "its claim is settled, and the ledger does not have its effect"
	case len(records) != 1:
		return fmt.Sprintf("its claim is settled, and there are %d rows of it", len(records))
	case records[0] != record{effects[0].ID, f.orders[order]}:
		return fmt.Sprintf("its row has %s with %d, the ledger %s with %d", records[0].receipt, records[0].amount, effects[0].ID, f.orders[order])
	case f.receipts[order] != 1:
		return fmt.Sprintf("its claim is settled, and there are %d receipts in the topic", f.receipts[order])
	case f.settlements[order] != 1:
		return fmt.Sprintf("its claim is settled, and %d events say so", f.settlements[order])
	}
	return f.judgeEffect(order, k)
}

// strays are things that are of none of the orders.
func (f *facts) strays() (all []string) {
	for order, effects := range f.effects {
		for _, e := range effects {
			all = f.stray(all, order, "an effect in the ledger, "+e.ID+",")
		}
	}
	for order := range f.claims {
		all = f.stray(all, order, "a claim")
	}
	for order := range f.records {
		all = f.stray(all, order, "a row")
	}
	for order := range f.receipts {
		all = f.stray(all, order, "a receipt")
	}
	slices.Sort(all)
	return all
}

func (f *facts) stray(all []string, order, what string) []string {
	if _, known := f.orders[order]; known {
		return all
	}
	return append(all, fmt.Sprintf("%s of %q", what, order))
}
