package stripeserver

import (
	"net/http"
	"strconv"
	"strings"
)

// intent is a PaymentIntent, as JSON.
type intent struct {
	ID                 string            `json:"id"`
	Object             string            `json:"object"`
	Amount             int64             `json:"amount"`
	AmountReceived     int64             `json:"amount_received"`
	Currency           string            `json:"currency"`
	Status             string            `json:"status"`
	Customer           *string           `json:"customer"`
	PaymentMethod      *string           `json:"payment_method"`
	Description        *string           `json:"description"`
	Metadata           map[string]string `json:"metadata"`
	Created            int64             `json:"created"`
	Livemode           bool              `json:"livemode"`
	ClientSecret       string            `json:"client_secret"`
	LatestCharge       *string           `json:"latest_charge"`
	CancellationReason *string           `json:"cancellation_reason"`
	LastPaymentError   *apiError         `json:"last_payment_error"`
}

func (p *intent) id() string       { return p.ID }
func (p *intent) createdAt() int64 { return p.Created }

func (p *intent) customer() string {
	if p.Customer == nil {
		return ""
	}
	return *p.Customer
}

// methods are Stripe's test payment methods, and what becomes of a payment with them.
// https://docs.stripe.com/testing. Those with "oncemill" in their name are ours.
var methods = map[string]apiError{
	"pm_card_visa":                                 {},
	"pm_card_mastercard":                           {},
	"pm_card_amex":                                 {},
	"pm_card_chargeDeclined":                       declined("card_declined", "generic_decline", "Your card was declined."),
	"pm_card_visa_chargeDeclined":                  declined("card_declined", "generic_decline", "Your card was declined."),
	"pm_card_visa_chargeDeclinedInsufficientFunds": declined("card_declined", "insufficient_funds", "Your card has insufficient funds."),
	"pm_card_visa_chargeDeclinedLostCard":          declined("card_declined", "lost_card", "Your card was declined."),
	"pm_card_chargeDeclinedExpiredCard":            declined("expired_card", "", "Your card has expired."),
	"pm_card_chargeDeclinedProcessingError":        declined("processing_error", "", "An error occurred while processing your card. Try again in a little bit."),
	"pm_card_authenticationRequired":               declined("authentication_required", "authentication_required", "Your card was declined. This transaction requires authentication."),
	"pm_oncemill_processing":                       {},
	"pm_oncemill_requiresAction":                   {},
	"pm_oncemill_requiresCapture":                  {},
	"pm_oncemill_requiresAction_cannotBeCanceled":  {},
	"pm_oncemill_requiresAction_paidWhenCanceled":  {},
}

func declined(code, declineCode, message string) apiError {
	return apiError{Type: "card_error", Code: code, DeclineCode: declineCode, Message: message}
}

func (s *Server) createIntent(call Call, fault Fault) answer {
	p := call.Params
	amount, problem := amountOf(p.Get("amount"))
	if problem != nil {
		return *problem
	}
	method := p.Get("payment_method")
	decline, known := methods[method]
	switch {
	case len(p.Get("currency")) != 3 || p.Get("currency") != strings.ToLower(p.Get("currency")):
		return invalid("", "currency", "Invalid currency: %s.", p.Get("currency"))
	case p.Get("confirm") == "true" && method == "":
		return invalid("parameter_missing", "payment_method", "You cannot confirm this PaymentIntent because it's missing a payment method.")
	case method != "" && !known:
		return missing("payment_method", method)
	case p.Get("customer") == "cus_missing":
		return missing("customer", "cus_missing")
	}
	id := s.newID("pi")
	in := &intent{
		ID: id, Object: "payment_intent", Amount: amount, Currency: p.Get("currency"), Metadata: metadataOf(p),
		Customer: given(p.Get("customer")), PaymentMethod: given(method), Description: given(p.Get("description")),
		Created: s.options.Now().Unix(), ClientSecret: id + "_secret_oncemill", Status: "requires_confirmation",
	}
	s.intents = append(s.intents, in)
	if p.Get("confirm") != "true" || fault == ErrorHalf {
		return success(in)
	}
	return s.confirm(in, call.Key, decline)
}

func (s *Server) confirm(in *intent, key string, decline apiError) answer {
	if decline.Type != "" {
		in.Status, in.LastPaymentError = "requires_payment_method", &decline
		e := decline
		snapshot := *in
		e.PaymentIntent = &snapshot
		return failure(http.StatusPaymentRequired, e)
	}
	switch method := *in.PaymentMethod; {
	case strings.HasPrefix(method, "pm_oncemill_requiresAction"):
		in.Status = "requires_action"
		return success(in)
	case method == "pm_oncemill_requiresCapture":
		in.Status = "requires_capture"
		return success(in)
	case method == "pm_oncemill_processing":
		in.Status = "processing"
	default:
		in.Status, in.AmountReceived = "succeeded", in.Amount
	}
	return s.pay(in, key)
}

// pay moves the money.
func (s *Server) pay(in *intent, key string) answer {
	in.LatestCharge = given(s.newID("ch"))
	err := s.ledger.add(Entry{
		At: s.options.Now(), Kind: "charge", ID: in.ID, Key: key, Amount: in.Amount, Currency: in.Currency,
		Customer: in.customer(), Metadata: in.Metadata,
	})
	if err != nil {
		return failure(http.StatusInternalServerError, apiError{Type: "api_error", Message: "ledger: " + err.Error()})
	}
	return success(in)
}

func (s *Server) listIntents(call Call, _ Fault) answer {
	customer := call.Params.Get("customer")
	return list(s, call, s.intents, func(in *intent) bool { return customer == "" || in.customer() == customer })
}

func (s *Server) cancelIntent(call Call, _ Fault) answer {
	id, _ := canceledID(call.Path)
	for _, in := range s.intents {
		if in.ID != id {
			continue
		}
		method := ""
		if in.PaymentMethod != nil {
			method = *in.PaymentMethod
		}
		if method == "pm_oncemill_requiresAction_paidWhenCanceled" && in.Status == "requires_action" {
			in.Status = "succeeded" // the customer was faster
			s.pay(in, "")
		}
		if in.Status == "succeeded" || in.Status == "canceled" || method == "pm_oncemill_requiresAction_cannotBeCanceled" {
			return invalid("payment_intent_unexpected_state", "intent",
				"You cannot cancel this PaymentIntent because it has a status of %s.", in.Status)
		}
		in.Status, in.CancellationReason = "canceled", given(call.Params.Get("cancellation_reason"))
		return success(in)
	}
	return missing("intent", id)
}

func amountOf(text string) (int64, *answer) {
	amount, err := strconv.ParseInt(text, 10, 64)
	if err != nil || amount <= 0 {
		a := invalid("parameter_invalid_integer", "amount", "Invalid positive integer: %s", text)
		return 0, &a
	}
	if amount > 999_999_999_999 {
		a := invalid("amount_too_large", "amount", "Amount must be no more than 999999999999.")
		return 0, &a
	}
	return amount, nil
}

func given(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}
