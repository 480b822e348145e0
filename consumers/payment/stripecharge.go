package payment

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"

	"github.com/stripe/stripe-go/v85"

	"github.com/oncemill/oncemill"
)

// Execute makes a charge or a refund. See Provider.
func (s *Stripe) Execute(ctx context.Context, key string, r Request) (Receipt, error) {
	client, err := s.connect()
	if err != nil {
		return Receipt{}, oncemill.DidNotHappen(err)
	}
	if key == "" {
		return Receipt{}, oncemill.DidNotHappen(wrong("key", "is empty: give Claim.ProviderKey"))
	}
	r.Currency = strings.ToLower(r.Currency)
	if err := s.checkRequest(r); err != nil {
		return Receipt{}, err
	}
	metadata := claimMetadata(ctx, key, r.Metadata)
	if r.Kind == Refund {
		return s.refund(ctx, client, key, r, metadata)
	}
	return s.charge(ctx, client, key, r, metadata)
}

func (s *Stripe) checkRequest(r Request) error {
	if err := checkAmount(r.Amount, r.Currency, s.MostAmount); err != nil {
		return err
	}
	switch r.Kind {
	case "", Charge:
		if r.PaymentMethod == "" {
			return wrong("payment_method", "is missing: give the id of one, such as pm_1MqLiJLkdIwHu7ix")
		}
		if r.Payment != "" {
			return wrong("payment", "is for a refund: leave it out, or set kind to refund")
		}
	case Refund:
		if !strings.HasPrefix(r.Payment, "pi_") && !strings.HasPrefix(r.Payment, "ch_") {
			return wrong("payment", "is %.40q: must be what to refund, a PaymentIntent (pi_...) or a Charge (ch_...)", r.Payment)
		}
	default:
		return wrong("kind", "is %.40q: must be charge or refund", r.Kind)
	}
	for _, f := range [][2]string{{"payment_method", r.PaymentMethod}, {"payment", r.Payment}, {"customer", r.Customer}} {
		if len(f[1]) > 255 || strings.ContainsFunc(f[1], func(c rune) bool { return c <= ' ' || c > '~' }) {
			return wrong(f[0], "is %.40q: must be an id of Stripe's", f[1])
		}
	}
	return checkMetadata(r.Metadata)
}

// Stripe's limits: https://docs.stripe.com/api/metadata. Three names are ours.
const mostMetadata, mostName, mostValue = 50 - 3, 40, 500

func checkMetadata(m map[string]string) error {
	if len(m) > mostMetadata {
		return wrong("metadata", "has %d names: at most %d are kept", len(m), mostMetadata)
	}
	for name, value := range m {
		switch {
		case strings.HasPrefix(name, "oncemill_"):
			return wrong("metadata", "has the name %.40q: those that begin with oncemill_ are taken", name)
		case name == "" || len(name) > mostName || strings.ContainsAny(name, "[]"):
			return wrong("metadata", "has the name %.60q: must be 1 to %d bytes without [ and ]", name, mostName)
		case value == "" || len(value) > mostValue:
			return wrong("metadata."+name, "has %d bytes: must be 1 to %d, or left out", len(value), mostValue)
		}
	}
	return nil
}

// claimMetadata adds the claim to a payment's metadata: for Find, and for people who
// look at it in Stripe's dashboard.
func claimMetadata(ctx context.Context, key string, of map[string]string) map[string]string {
	m := make(map[string]string, len(of)+3)
	maps.Copy(m, of)
	m[MetadataKey] = key
	if claim, ok := oncemill.ClaimFromContext(ctx); ok {
		for name, value := range map[string]string{MetadataConsumer: claim.Consumer(), MetadataMessage: claim.Key()} {
			if value != "" && len(value) <= mostValue {
				m[name] = value
			}
		}
	}
	return m
}

func (s *Stripe) charge(ctx context.Context, client *stripe.Client, key string, r Request, metadata map[string]string) (Receipt, error) {
	params := &stripe.PaymentIntentCreateParams{
		Amount: &r.Amount, Currency: &r.Currency, PaymentMethod: &r.PaymentMethod,
		Customer: optional(r.Customer), Description: optional(r.Description), Metadata: metadata,
		Confirm: stripe.Bool(true), OffSession: stripe.Bool(true),
		AutomaticPaymentMethods: &stripe.PaymentIntentCreateAutomaticPaymentMethodsParams{
			Enabled: stripe.Bool(true), AllowRedirects: stripe.String("never"),
		},
	}
	params.IdempotencyKey, params.StripeAccount = &key, s.account()
	var intent *stripe.PaymentIntent
	trip, err := s.call(ctx, func(ctx context.Context) (err error) {
		intent, err = client.V1PaymentIntents.Create(ctx, params)
		return err
	})
	if err != nil {
		return Receipt{}, verdict(trip, err)
	}
	if intent.Metadata[MetadataKey] != key {
		return Receipt{}, errNotOurs
	}
	receipt, err := receiptOfIntent(intent)
	if oncemill.VerdictOf(err) == oncemill.NotHappened {
		return Receipt{}, s.cancel(ctx, client, key, intent, err)
	}
	return receipt, err
}

// cancel makes sure that a payment which waits for somebody will never be made. It is
// what a customer who has to confirm it would need to be asked for.
func (s *Stripe) cancel(ctx context.Context, client *stripe.Client, key string, intent *stripe.PaymentIntent, why error) error {
	params := &stripe.PaymentIntentCancelParams{CancellationReason: stripe.String("abandoned")}
	cancelKey := key + "-cancel"
	params.IdempotencyKey, params.StripeAccount = &cancelKey, s.account()
	var canceled *stripe.PaymentIntent
	_, err := s.call(ctx, func(ctx context.Context) (err error) {
		canceled, err = client.V1PaymentIntents.Cancel(ctx, intent.ID, params)
		return err
	})
	switch {
	case err != nil:
		return fmt.Errorf("%w, and canceling it failed: %w", hidden{why}, err)
	case canceled.Status != stripe.PaymentIntentStatusCanceled:
		return fmt.Errorf("%w, and after canceling it is %s", hidden{why}, canceled.Status)
	}
	return Final(fmt.Errorf("%w: it was canceled", hidden{why}))
}

// hidden takes the verdict from an error: another one will say what is known.
type hidden struct{ error }

func (h hidden) EffectVerdict() oncemill.Verdict { return oncemill.Unknown }
func (h hidden) Unwrap() error                   { return h.error }

func (s *Stripe) refund(ctx context.Context, client *stripe.Client, key string, r Request, metadata map[string]string) (Receipt, error) {
	params := &stripe.RefundCreateParams{Amount: &r.Amount, Metadata: metadata}
	if strings.HasPrefix(r.Payment, "pi_") {
		params.PaymentIntent = &r.Payment
	} else {
		params.Charge = &r.Payment
	}
	params.IdempotencyKey, params.StripeAccount = &key, s.account()
	var refund *stripe.Refund
	trip, err := s.call(ctx, func(ctx context.Context) (err error) {
		refund, err = client.V1Refunds.Create(ctx, params)
		return err
	})
	if err != nil {
		return Receipt{}, verdict(trip, err)
	}
	if refund.Metadata[MetadataKey] != key {
		return Receipt{}, errNotOurs
	}
	return receiptOfRefund(refund)
}

var errNotOurs = errors.New("stripe: the answer is not about our payment: its metadata has another " + MetadataKey)

func optional(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}

// receiptOfIntent says what a PaymentIntent's status means. One that is not paid and
// not refused either is NotHappened: nothing but a confirmation would pay it.
func receiptOfIntent(p *stripe.PaymentIntent) (Receipt, error) {
	if p.ID == "" || p.Object != "payment_intent" {
		return Receipt{}, fmt.Errorf("stripe: the answer is not a PaymentIntent (id %.60q, object %.60q)", p.ID, p.Object)
	}
	r := Receipt{ID: p.ID, Kind: Charge, Status: string(p.Status), Amount: p.Amount, Currency: string(p.Currency)}
	switch p.Status {
	case stripe.PaymentIntentStatusSucceeded, stripe.PaymentIntentStatusProcessing:
		return r, nil
	case stripe.PaymentIntentStatusCanceled:
		return Receipt{}, Final(fmt.Errorf("stripe: %s is canceled%s", p.ID, lastError(p)))
	case stripe.PaymentIntentStatusRequiresPaymentMethod:
		if p.LastPaymentError != nil {
			return Receipt{}, Final(fmt.Errorf("stripe: %s is not paid: %s%s", p.ID, p.Status, lastError(p)))
		}
		return Receipt{}, oncemill.DidNotHappen(fmt.Errorf("stripe: %s is not paid: %s", p.ID, p.Status))
	case stripe.PaymentIntentStatusRequiresAction, stripe.PaymentIntentStatusRequiresConfirmation:
		return Receipt{}, oncemill.DidNotHappen(fmt.Errorf("stripe: %s is not paid: %s", p.ID, p.Status))
	}
	return Receipt{}, fmt.Errorf("stripe: %s has the status %.60q, which says nothing of the payment to us", p.ID, p.Status)
}

func lastError(p *stripe.PaymentIntent) string {
	var parts []string
	if e := p.LastPaymentError; e != nil {
		parts = append(parts, string(e.Code), string(e.DeclineCode), e.Msg)
	}
	parts = append(parts, string(p.CancellationReason))
	text := ""
	for _, part := range parts {
		if part != "" {
			text += ": " + part
		}
	}
	return text
}

func receiptOfRefund(f *stripe.Refund) (Receipt, error) {
	if f.ID == "" || f.Object != "refund" {
		return Receipt{}, fmt.Errorf("stripe: the answer is not a refund (id %.60q, object %.60q)", f.ID, f.Object)
	}
	r := Receipt{ID: f.ID, Kind: Refund, Status: string(f.Status), Amount: f.Amount, Currency: string(f.Currency)}
	switch f.Status {
	case stripe.RefundStatusSucceeded, stripe.RefundStatusPending, stripe.RefundStatusRequiresAction:
		return r, nil
	case stripe.RefundStatusFailed, stripe.RefundStatusCanceled:
		return Receipt{}, Final(fmt.Errorf("stripe: refund %s is %s %s", f.ID, f.Status, f.FailureReason))
	}
	return Receipt{}, fmt.Errorf("stripe: refund %s has the status %.60q, which says nothing of the refund to us", f.ID, f.Status)
}
