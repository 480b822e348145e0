package payment

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync/atomic"

	"github.com/stripe/stripe-go/v85"
)

// sendOnce is a transport that sends a request at most once. net/http sends one that
// has an Idempotency-Key again when a connection that was used before breaks. It
// cannot do that without a second copy of the body.
type sendOnce struct{ transport *http.Transport }

func (t sendOnce) RoundTrip(r *http.Request) (*http.Response, error) {
	once := *r
	once.GetBody = nil
	resp, err := t.transport.RoundTrip(&once)
	if trip, ok := r.Context().Value(tripKey{}).(*trip); ok && err == nil {
		trip.status.Store(int64(resp.StatusCode))
	}
	return resp, err
}

// trip is how far a request came.
type trip struct {
	connected atomic.Bool  // there was a connection to write to: it may have arrived
	status    atomic.Int64 // of HTTP; 0: there was no answer
}

// refused says of a trip to find out whether Stripe accepts us how it failed, if it did.
func (t *trip) refused(err error) error {
	switch {
	case err == nil:
		return nil
	case !t.connected.Load():
		return fmt.Errorf("payment: Stripe cannot be reached: %w (check the network, and Stripe.BaseURL if it is set)", err)
	case t.status.Load() == 0:
		return fmt.Errorf("payment: Stripe does not answer: %w", err)
	case t.status.Load() >= http.StatusInternalServerError:
		return fmt.Errorf("payment: Stripe is in trouble: %w", err)
	}
	return fmt.Errorf("payment: Stripe does not accept us: %w", err)
}

type tripKey struct{}

// call makes one request through stripe-go. Its error is fit to be shown, and has no
// verdict yet.
func (s *Stripe) call(ctx context.Context, send func(ctx context.Context) error) (*trip, error) {
	t := &trip{}
	err := send(httptrace.WithClientTrace(context.WithValue(ctx, tripKey{}, t), &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { t.connected.Store(true) },
	}))
	if err == nil {
		return t, nil
	}
	return t, s.explain(err, int(t.status.Load()))
}

// explain makes errors of stripe-go presentable. In the text of theirs there may be
// whole objects, with the secrets of PaymentIntents, or whatever else has answered.
func (s *Stripe) explain(err error, status int) error {
	var answer *stripe.Error
	if errors.As(err, &answer) {
		return s.answered(answer)
	}
	var network net.Error
	for _, target := range []error{io.EOF, io.ErrUnexpectedEOF, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, target) {
			return hiddenError{err, s.APIKey}
		}
	}
	if errors.As(err, &network) { // *url.Error is one
		return hiddenError{err, s.APIKey}
	}
	return fmt.Errorf("stripe: HTTP %d with something that is not an answer of Stripe's", status)
}

func (s *Stripe) answered(answer *stripe.Error) *StripeError {
	e := &StripeError{
		Status: answer.HTTPStatusCode, Type: string(answer.Type), Code: string(answer.Code),
		DeclineCode: string(answer.DeclineCode), Param: answer.Param, RequestID: answer.RequestID,
		Message: strings.ReplaceAll(answer.Msg, s.APIKey, "[API key]"),
	}
	if answer.PaymentIntent != nil {
		e.Payment = answer.PaymentIntent.ID
	}
	if answer.LastResponse != nil {
		e.Replayed = answer.LastResponse.Header.Get("Idempotent-Replayed") == "true"
	}
	return e
}

// hiddenError is an error without the API key in its text, which is where a proxy or
// a library might put it.
type hiddenError struct {
	error
	key string
}

func (e hiddenError) Error() string { return strings.ReplaceAll(e.error.Error(), e.key, "[API key]") }
func (e hiddenError) Unwrap() error { return e.error }
