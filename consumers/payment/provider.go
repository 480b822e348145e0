package payment

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/oncemill/oncemill"
)

// A Provider makes payments, or other effects of that kind, at somebody else's
// server. Stripe is one. Another needs two methods and no more than a few dozen
// lines: see the package brokerorders among the examples.
//
// The methods are called from many goroutines.
type Provider interface {
	// Execute makes the effect, and returns its receipt when it certainly happened.
	// key identifies the effect at the provider and is the same over all attempts:
	// "om-" and 40 hexadecimal digits.
	//
	// An error carries what is known: oncemill.DidNotHappen and oncemill.NeverWill
	// where it is certain of this call, a plain error where it is not. An *InputError
	// is for a request that was not even sent. Final is for an answer that holds for
	// every call under the key.
	Execute(ctx context.Context, key string, r Request) (Receipt, error)

	// Find asks what became of the effect, and answers as Execute would: with a
	// receipt if it happened, oncemill.NeverWill if the provider has refused it for
	// good, oncemill.DidNotHappen (with ErrNotFound) if there is no trace of it, and a
	// plain error if that cannot be told. It must ask a source that is consistent.
	Find(ctx context.Context, s Search) (Receipt, error)
}

// A Search is for the effect of one claim.
type Search struct {
	Key string // what Execute was given

	// Request is what Execute was given, as far as the message is still there. nil:
	// it is not, so ask by the key alone.
	Request *Request

	// From and To bound the time of the effect, with room for clocks that differ and
	// for requests that are late.
	From, To time.Time
}

// A Receipt is what a claim is settled with, as JSON.
type Receipt struct {
	ID       string `json:"id"`     // the provider's
	Kind     string `json:"kind"`   // Charge, Refund, or a kind of the provider's own
	Status   string `json:"status"` // the provider's word, such as "succeeded" or "processing"
	Amount   int64  `json:"amount"` // in the currency's smallest unit
	Currency string `json:"currency"`
}

// ErrNotFound is for Find: the provider knows of no effect under the key.
var ErrNotFound = errors.New("the provider has nothing under this key")

// Final marks err, which must not be nil, as an answer about the key: no call under
// it has made the effect, and none will. oncemill.NeverWill says that of one call,
// and is not believed of a claim that had an earlier attempt: there, an answer given
// without looking at what the first call had done proves nothing.
func Final(err error) error { return finalError{err} }

type finalError struct{ error }

func (e finalError) Unwrap() error                   { return e.error }
func (e finalError) EffectVerdict() oncemill.Verdict { return oncemill.Never }

// doubtError takes the verdict from an error.
type doubtError struct {
	error
	attempt int
}

func (e doubtError) Error() string {
	return fmt.Sprintf("attempt %d, which tells nothing of the ones before: %v", e.attempt, e.error)
}
func (e doubtError) Unwrap() error                   { return e.error }
func (e doubtError) EffectVerdict() oncemill.Verdict { return oncemill.Unknown }

// ofAllAttempts turns what an attempt says of its own call into what is known of the
// claim. An attempt after the first one runs because nobody knows what became of the
// others, and a refusal that comes before the provider has looked for the key, such
// as a rate limit or a wrong API key, does not change that.
func ofAllAttempts(err error, attempt int) error {
	var final finalError
	if attempt <= 1 || errors.As(err, &final) || oncemill.VerdictOf(err) == oncemill.Unknown {
		return err
	}
	return doubtError{err, attempt}
}
