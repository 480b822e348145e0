package payment

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/stripe/stripe-go/v85"

	"github.com/oncemill/oncemill"
)

// A StripeError is an answer of Stripe's that is an error.
type StripeError struct {
	Status      int    // of HTTP
	Type        string // such as "card_error"
	Code        string // such as "card_declined"
	DeclineCode string // such as "insufficient_funds"
	Param       string // the parameter that it is about
	Message     string
	RequestID   string // by which Stripe's support finds the request
	Payment     string // the id of the PaymentIntent, where there is one
	Replayed    bool   // Stripe gave the answer that it had stored with the key
}

// Error says all that is there, and nothing that is secret.
func (e *StripeError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "stripe: HTTP %d", e.Status)
	for _, part := range []string{e.Type, e.Code, e.DeclineCode} {
		if part != "" {
			b.WriteString(" " + part)
		}
	}
	if e.Message != "" {
		b.WriteString(": " + e.Message)
	}
	for _, part := range [][2]string{{"param", e.Param}, {"payment", e.Payment}, {"request", e.RequestID}} {
		if part[1] != "" {
			fmt.Fprintf(&b, " [%s %s]", part[0], part[1])
		}
	}
	if e.Replayed {
		b.WriteString(" (the stored answer to an earlier request)")
	}
	return b.String()
}

// ourFault are codes that say nothing about the payment: the same message will do when
// the key or the account is right.
var ourFault = []stripe.ErrorCode{
	stripe.ErrorCodeAPIKeyExpired, stripe.ErrorCodePlatformAPIKeyExpired, stripe.ErrorCodeSecretKeyRequired,
	stripe.ErrorCodeLivemodeMismatch, stripe.ErrorCodeTestmodeChargesOnly, stripe.ErrorCodeTLSVersionUnsupported,
	stripe.ErrorCodeAccountInvalid,
}

// verdict gives an error of a request that makes a payment the verdict that it
// carries. See the package comment for the table, and for Stripe's words on it.
func verdict(t *trip, err error) error {
	var e *StripeError
	switch {
	case !t.connected.Load():
		return oncemill.ProviderAway(fmt.Errorf("nothing was sent: %w", err))
	case !errors.As(err, &e):
		return err // no answer, or none of Stripe's
	}
	code := stripe.ErrorCode(e.Code)
	invalid := e.Type == string(stripe.ErrorTypeInvalidRequest)
	switch {
	case e.Type == "", e.Type == string(stripe.ErrorTypeIdempotency), e.Status >= 500,
		code == stripe.ErrorCodeIdempotencyKeyInUse, code == stripe.ErrorCodeLockTimeout:
		return e
	case e.Status == http.StatusUnauthorized, e.Status == http.StatusForbidden,
		e.Status == http.StatusTooManyRequests && code == stripe.ErrorCodeRateLimit, slices.Contains(ourFault, code):
		return oncemill.ProviderAway(e)
	case e.Status == http.StatusPaymentRequired && e.Type == string(stripe.ErrorTypeCard):
		return Final(e)
	case invalid && (e.Status == http.StatusBadRequest || e.Status == http.StatusPaymentRequired),
		invalid && e.Status == http.StatusNotFound && code == stripe.ErrorCodeResourceMissing:
		if e.Replayed {
			return Final(e)
		}
		return oncemill.NeverWill(e)
	}
	return e
}
