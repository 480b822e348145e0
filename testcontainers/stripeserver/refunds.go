package stripeserver

import "strings"

// refund is a Refund, as JSON.
type refund struct {
	ID            string            `json:"id"`
	Object        string            `json:"object"`
	Amount        int64             `json:"amount"`
	Currency      string            `json:"currency"`
	Status        string            `json:"status"`
	Charge        *string           `json:"charge"`
	PaymentIntent *string           `json:"payment_intent"`
	Metadata      map[string]string `json:"metadata"`
	Created       int64             `json:"created"`
}

func (f *refund) id() string       { return f.ID }
func (f *refund) createdAt() int64 { return f.Created }

func (f *refund) of(payment string) bool {
	return f.PaymentIntent != nil && *f.PaymentIntent == payment || f.Charge != nil && *f.Charge == payment
}

func (s *Server) createRefund(call Call, _ Fault) answer {
	amount, problem := amountOf(call.Params.Get("amount"))
	if problem != nil {
		return *problem
	}
	payment := call.Params.Get("payment_intent") + call.Params.Get("charge")
	paid := s.paid(payment)
	if paid == nil {
		return missing("payment_intent", payment)
	}
	left := paid.AmountReceived
	for _, f := range s.refunds {
		if f.of(paid.ID) {
			left -= f.Amount
		}
	}
	switch {
	case left == 0:
		return invalid("charge_already_refunded", "", "Charge %s has already been refunded.", payment)
	case amount > left:
		return invalid("", "amount", "Refund amount (%d) is greater than unrefunded amount on charge (%d)", amount, left)
	}
	f := &refund{
		ID: s.newID("re"), Object: "refund", Amount: amount, Currency: paid.Currency, Status: "succeeded",
		Charge: paid.LatestCharge, PaymentIntent: &paid.ID, Metadata: metadataOf(call.Params), Created: s.options.Now().Unix(),
	}
	s.refunds = append(s.refunds, f)
	err := s.ledger.add(Entry{
		At: s.options.Now(), Kind: "refund", ID: f.ID, Key: call.Key, Amount: amount, Currency: f.Currency,
		Customer: paid.customer(), Payment: payment, Metadata: f.Metadata,
	})
	if err != nil {
		return serverError()
	}
	return success(f)
}

// paid returns the PaymentIntent with an id, or the one of a charge.
func (s *Server) paid(payment string) *intent {
	for _, in := range s.intents {
		if in.Status == "succeeded" && (in.ID == payment || strings.HasPrefix(payment, "ch_") && in.LatestCharge != nil && *in.LatestCharge == payment) {
			return in
		}
	}
	return nil
}

func (s *Server) listRefunds(call Call, _ Fault) answer {
	payment := call.Params.Get("payment_intent") + call.Params.Get("charge")
	return list(s, call, s.refunds, func(f *refund) bool { return payment == "" || f.of(payment) })
}
