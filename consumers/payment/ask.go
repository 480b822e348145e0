package payment

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
)

const (
	// clockMargin is how far the clocks of Postgres and of a provider may be apart.
	clockMargin = 5 * time.Minute

	// latest is how long after an attempt was over its effect is looked for. It is
	// far more than any LandingBound, and bounds what a search has to go through.
	latest = 24 * time.Hour
)

// Ask finds out what became of a payment that is in doubt. It is for Guard.Ask and
// oncemill.Resolver.Ask. See StripeLandingBound for the LandingBound to go with it.
//
// The message, or else the payload that the claim was given, narrows the search and
// need not be there: a provider can be asked by the key alone.
func (c *Charger) Ask(ctx context.Context, d oncemill.InDoubt) (oncemill.Resolution, error) {
	if c.Provider == nil {
		return oncemill.Resolution{}, errNoProvider
	}
	search := Search{
		Key:     d.ProviderKey(),
		Request: c.requestOf(ctx, d),
		From:    d.FirstClaimed.Add(-clockMargin),
		To:      d.EffectUntil.Add(latest),
	}
	receipt, err := c.Provider.Find(ctx, search)
	switch verdict := oncemill.VerdictOf(err); verdict {
	case oncemill.Happened:
		return c.happened(d, receipt)
	case oncemill.Unknown:
		return oncemill.Resolution{}, err
	default:
		return oncemill.Resolution{Verdict: verdict, Note: err.Error()}, nil
	}
}

// Describe is for Guard.Describe. It keeps the amount and the payload with the claim's
// events: for reports, and for Ask, which has no other message where it was not
// parked. A message that makes no request is for Handle to refuse.
func (c *Charger) Describe(msg *message.Message, opts *oncemill.ClaimOptions) error {
	r, err := c.decode(msg)
	if err != nil {
		return nil
	}
	if isCode(r.Currency) {
		opts.Amount, opts.Currency = Decimal(r.Amount, r.Currency), strings.ToUpper(r.Currency)
	}
	if len(msg.Payload) <= oncemill.MostResult {
		opts.Payload = msg.Payload
	}
	return nil
}

// isCode tells a currency that can be kept with a claim.
func isCode(currency string) bool {
	return len(currency) >= 3 && len(currency) <= 10 && !strings.ContainsFunc(currency, func(c rune) bool {
		return !unicode.IsLetter(c) || c > unicode.MaxASCII
	})
}

func (c *Charger) happened(d oncemill.InDoubt, receipt Receipt) (oncemill.Resolution, error) {
	result, err := json.Marshal(receipt)
	if err != nil {
		return oncemill.Resolution{}, fmt.Errorf("payment: it happened, but its receipt %+v cannot be stored: %w", receipt, err)
	}
	r := oncemill.Resolution{
		Verdict: oncemill.Happened,
		Note:    fmt.Sprintf("%s is %s", receipt.ID, receipt.Status),
		Result:  result,
	}
	if c.OnSettle != nil {
		r.Settle = c.settle(d.Key, receipt)
	}
	return r, nil
}

// requestOf returns nil if there is no message that makes a request.
func (c *Charger) requestOf(ctx context.Context, d oncemill.InDoubt) *Request {
	msg := message.NewMessage("", d.Payload)
	if m := d.Message; m != nil {
		msg = message.NewMessage(m.UUID, m.Payload)
		for name, value := range m.Metadata {
			msg.Metadata.Set(name, value)
		}
	}
	msg.SetContext(ctx)
	r, err := c.decode(msg)
	if err != nil {
		return nil
	}
	return &r
}
