package payment

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/stripe/stripe-go/v85"

	"github.com/oncemill/oncemill"
)

// mostPages is for Stripe.MostPages.
const mostPages = 500

// Find looks for the payment with the key in its metadata. It looks first among those
// of the request's customer, or at the refunds of its payment, and then through all
// that the account has made in the time of the search.
//
// It goes through lists, not through Stripe's search. Search takes up to a minute to
// know a payment, and longer during outages; Stripe says of lists that they are not
// subject to that: https://docs.stripe.com/search#data-freshness
//
// Nothing found is NotHappened. That it is believed only when it was asked for late
// enough is the Resolver's business.
func (s *Stripe) Find(ctx context.Context, search Search) (Receipt, error) {
	client, err := s.connect()
	if err != nil {
		return Receipt{}, err
	}
	if search.Key == "" || search.From.IsZero() || search.To.Before(search.From) {
		return Receipt{}, fmt.Errorf("payment: Search has the key %q, From %v and To %v: set all of them, in order", search.Key, search.From, search.To)
	}
	f := &finder{s: s, client: client, Search: search, left: s.MostPages}
	if f.left == 0 {
		f.left = mostPages
	}
	if search.Request == nil {
		return f.first(ctx, place{f.charges, ""}, place{f.refunds, ""})
	}
	wide, narrow := place{f.charges, ""}, place{f.charges, search.Request.Customer}
	if search.Request.Kind == Refund {
		wide, narrow = place{f.refunds, ""}, place{f.refunds, search.Request.Payment}
	}
	switch {
	case narrow.of == "":
		return f.first(ctx, wide)
	case s.Narrow:
		return f.first(ctx, narrow)
	}
	return f.first(ctx, narrow, wide)
}

// finder is one Find.
type finder struct {
	Search
	s      *Stripe
	client *stripe.Client
	left   int // pages that may still be asked for
}

// place is where to look: among the payments of a customer or the refunds of a
// payment, or with "" among all.
type place struct {
	look func(ctx context.Context, of string) (Receipt, bool, error)
	of   string
}

// first returns the first answer that says more than that nothing was found.
func (f *finder) first(ctx context.Context, places ...place) (Receipt, error) {
	for _, p := range places {
		if receipt, found, err := p.look(ctx, p.of); found || err != nil {
			return receipt, err
		}
	}
	return Receipt{}, oncemill.DidNotHappen(fmt.Errorf("stripe: no payment has %s = %s: %w", MetadataKey, f.Key, ErrNotFound))
}

func (f *finder) charges(ctx context.Context, customer string) (Receipt, bool, error) {
	return scan(ctx, f, func(ctx context.Context, p stripe.ListParams) *stripe.V1List[*stripe.PaymentIntent] {
		return f.client.V1PaymentIntents.List(ctx, &stripe.PaymentIntentListParams{
			ListParams: p, CreatedRange: f.created(customer != ""), Customer: optional(customer),
		})
	}, func(p *stripe.PaymentIntent) (id string, metadata map[string]string) { return p.ID, p.Metadata }, receiptOfIntent)
}

func (f *finder) refunds(ctx context.Context, payment string) (Receipt, bool, error) {
	return scan(ctx, f, func(ctx context.Context, p stripe.ListParams) *stripe.V1List[*stripe.Refund] {
		params := &stripe.RefundListParams{ListParams: p, CreatedRange: f.created(payment != "")}
		if strings.HasPrefix(payment, "ch_") {
			params.Charge = &payment
		} else {
			params.PaymentIntent = optional(payment)
		}
		return f.client.V1Refunds.List(ctx, params)
	}, func(r *stripe.Refund) (id string, metadata map[string]string) { return r.ID, r.Metadata }, receiptOfRefund)
}

// created returns the time to look through. Where that is not much, it begins a day
// earlier: should an earlier claim of the same message have been released by mistake,
// then its payment is the one to find.
func (f *finder) created(narrow bool) *stripe.RangeQueryParams {
	from := f.From
	if narrow {
		from = from.Add(-24 * time.Hour)
	}
	return &stripe.RangeQueryParams{GreaterThanOrEqual: from.Unix(), LesserThanOrEqual: f.To.Unix() + 1}
}

// scan goes through a list page by page, newest first, until it finds a payment that
// was made under the key. If it finds only others under the key, it returns what the
// newest of them says, or what one says of which nothing is known.
func scan[T any](ctx context.Context, f *finder, list func(context.Context, stripe.ListParams) *stripe.V1List[T],
	look func(T) (id string, metadata map[string]string), receiptOf func(T) (Receipt, error)) (_ Receipt, found bool, says error) {
	params := stripe.ListParams{Limit: stripe.Int64(100), Single: true, StripeAccount: f.s.account()}
	for more := true; more; {
		page, err := nextPage(ctx, f, list, params)
		if err != nil {
			return Receipt{}, false, err
		}
		for _, object := range page.Data() {
			id, metadata := look(object)
			params.StartingAfter = &id
			if metadata[MetadataKey] != f.Key {
				continue
			}
			receipt, err := receiptOf(object)
			if err == nil {
				return receipt, true, nil
			}
			if !found || oncemill.VerdictOf(err) == oncemill.Unknown {
				found, says = true, err
			}
		}
		more = page.Meta().HasMore
	}
	return Receipt{}, found, says
}

func nextPage[T any](ctx context.Context, f *finder, list func(context.Context, stripe.ListParams) *stripe.V1List[T], params stripe.ListParams) (page *stripe.V1List[T], err error) {
	if f.left == 0 {
		return nil, errors.New("stripe: the key is not among the latest payments of the account in that time, and Stripe.MostPages allows no more: raise it, or give payments a customer and set Stripe.Narrow")
	}
	f.left--
	_, err = f.s.call(ctx, func(ctx context.Context) error {
		page = list(ctx, params)
		return page.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("stripe: list payments: %w", err)
	}
	if err := checkList(page.LastResponse()); err != nil {
		return nil, fmt.Errorf("stripe: list payments: %w", err)
	}
	return page, nil
}

// checkList makes sure that an answer is a list: stripe-go takes every JSON object for
// one that is empty, which would say that there is no payment.
func checkList(answer *stripe.APIResponse) error {
	var list struct {
		Object  string             `json:"object"`
		Data    *[]json.RawMessage `json:"data"`
		HasMore *bool              `json:"has_more"`
	}
	switch {
	case answer == nil || json.Unmarshal(answer.RawJSON, &list) != nil || answer.StatusCode != http.StatusOK ||
		list.Object != "list" || list.Data == nil || list.HasMore == nil:
		return errors.New("the answer is not a list")
	case *list.HasMore && len(*list.Data) == 0:
		return errors.New("an empty page says that there are more")
	}
	return nil
}
