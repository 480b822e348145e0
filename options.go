package oncemill

import (
	"crypto/sha256"
	"fmt"
	"regexp"
	"time"
	"unicode/utf8"
)

// ClaimOptions says more about a message than its key.
type ClaimOptions struct {
	// Fingerprint identifies what the message says, such as a hash of its
	// payload. The same key with another fingerprint is refused with
	// ErrKeyReused. nil: not compared.
	Fingerprint []byte

	// Origin is when the message was first written. A message from before what
	// the purge has deleted is refused with ErrTooOld, if it has no claim. Zero:
	// not known, never refused.
	Origin time.Time

	// Outcome is what the claim is settled as, Settled or Dead. "" means Settled.
	// For Once only: Claim learns the outcome afterwards.
	Outcome Outcome

	// The rest is for Claim only.

	// Lease is how long the claim may stay unsettled before it is in doubt. 0
	// means Inbox.Lease.
	Lease time.Duration

	// KeyLifetime is how long, from the first attempt, the provider recognises
	// Claim.ProviderKey. A claim in doubt is claimed again, under a new token, as
	// long as the new attempt ends within that time. 0: a claim in doubt is never
	// claimed again.
	KeyLifetime time.Duration

	// Park is the message, to be stored if its claim is found in doubt, in the same
	// transaction: it can be acknowledged once Claim has returned ErrInDoubt. If the
	// effect turns out not to have happened, it goes back to its topic through the
	// outbox. Optional.
	Park *ParkedMessage

	// Action says what kind of effect it is, such as "charge", Agent on whose behalf,
	// and Scope what it is about. They are kept with the claim, for lists. At most
	// MostName bytes of UTF-8 each. Optional.
	Action, Agent, Scope string

	// Amount is what the effect comes to, as a decimal number such as "452.00", and
	// Currency what it is counted in. Both are kept with the claim and its events, and
	// summed in reports. Optional.
	Amount, Currency string

	// Payload is kept in the claim's events, at most 64 KiB. Optional.
	Payload []byte

	// Actor says who claims, in the events. "" means this process: its host and
	// process id.
	Actor string

	// Nonce is for a caller whose answer may get lost on its way, such as one that
	// claims over a network: it identifies the call, so that the call can be repeated.
	// Where the key is in flight, and was claimed with the same nonce and Fingerprint no
	// longer than NonceLifetime ago, Claim returns that claim again. At least 16 random
	// bytes that no other call has: all who have them make the effect. nil: never.
	//
	// Claim itself does not give back a claim with a nonce, whatever happens: a repeated
	// call may have got it.
	Nonce []byte

	// Patient says that the caller comes again when the key is in flight, so that
	// being refused for it is not an event.
	Patient bool
}

// MostResult is the largest result of a claim, and the largest payload, in bytes.
const MostResult = 64 << 10

// MostName is how long the action, the agent and the scope of a claim may be, in bytes.
const MostName = 512

// NonceLifetime is for how long a call can be repeated with its ClaimOptions.Nonce.
const NonceLifetime = 30 * time.Second

const (
	mostCurrency = 16
	leastNonce   = 16
)

// about is what an effect is about, as its claim and its events have it.
type about struct{ action, agent, amount, currency string }

func (o *ClaimOptions) about() about { return about{o.Action, o.Agent, o.Amount, o.Currency} }

var decimal = regexp.MustCompile(`^-?[0-9]{1,30}(\.[0-9]{1,20})?$`)

func (o *ClaimOptions) checkOnce() error {
	switch {
	case o.Outcome != "" && o.Outcome != Settled && o.Outcome != Dead:
		return fmt.Errorf("ClaimOptions.Outcome is %q: must be Settled or Dead", o.Outcome)
	case o.Lease != 0 || o.KeyLifetime != 0 || o.Park != nil || o.Action != "" || o.Agent != "" || o.Scope != "" || o.Amount != "" || o.Currency != "" || o.Nonce != nil || o.Payload != nil || o.Actor != "" || o.Patient:
		return fmt.Errorf("ClaimOptions.Lease and what follows it are for Claim: Once has no use for them")
	}
	return nil
}

// nonceDigest is what the table has of a nonce: whoever reads the table cannot repeat the
// call.
func (o *ClaimOptions) nonceDigest() []byte {
	if o.Nonce == nil {
		return nil
	}
	sum := sha256.Sum256(o.Nonce)
	return sum[:16]
}

// Check reports what Consumer.Claim would refuse, by name.
func (o ClaimOptions) Check() error { return o.checkClaim() }

func (o *ClaimOptions) checkClaim() error {
	for _, name := range []struct{ field, value string }{{"Action", o.Action}, {"Agent", o.Agent}, {"Scope", o.Scope}} {
		if len(name.value) > MostName || !utf8.ValidString(name.value) || containsNUL(name.value) {
			return fmt.Errorf("ClaimOptions.%s is %.40q: must be at most %d bytes of UTF-8 without NUL", name.field, name.value, MostName)
		}
	}
	switch {
	case o.Outcome != "":
		return fmt.Errorf("ClaimOptions.Outcome is %q: must be empty for Claim, which learns it from Settle or Fail", o.Outcome)
	case o.Lease != 0 && (o.Lease < LeastLease || o.Lease > MostLease):
		return fmt.Errorf("ClaimOptions.Lease is %v: must be from %v to %v, or 0 for Inbox.Lease", o.Lease, LeastLease, MostLease)
	case o.KeyLifetime < 0:
		return fmt.Errorf("ClaimOptions.KeyLifetime is %v: must not be negative", o.KeyLifetime)
	case o.Amount != "" && !decimal.MatchString(o.Amount):
		return fmt.Errorf("ClaimOptions.Amount is %.40q: must be a decimal number such as 452.00", o.Amount)
	case len(o.Currency) > mostCurrency || !utf8.ValidString(o.Currency) || containsNUL(o.Currency):
		return fmt.Errorf("ClaimOptions.Currency is %.40q: must be at most %d bytes of UTF-8", o.Currency, mostCurrency)
	case o.Nonce != nil && len(o.Nonce) < leastNonce:
		return fmt.Errorf("ClaimOptions.Nonce has %d bytes: must be at least %d random ones, or nil", len(o.Nonce), leastNonce)
	case len(o.Payload) > MostResult:
		return fmt.Errorf("ClaimOptions.Payload has %d bytes: at most %d are kept; give a reference to it", len(o.Payload), MostResult)
	case o.Park != nil:
		return o.Park.check()
	}
	return nil
}
