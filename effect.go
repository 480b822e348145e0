package oncemill

import (
	"errors"
)

// A Verdict says what is known of an effect outside of Postgres.
type Verdict string

const (
	// Unknown: nobody knows yet whether it happened. It is what an error means
	// that does not say otherwise.
	Unknown Verdict = ""

	// Happened: the effect is there.
	Happened Verdict = "happened"

	// NotHappened: the effect did not happen and can no longer happen by itself.
	// It may be tried again.
	NotHappened Verdict = "not happened"

	// Never: the effect did not happen, and trying again cannot help: the provider
	// has refused it for good.
	Never Verdict = "never"
)

// An EffectError is an error of a handler that knows what became of its effect.
// Return one where it is certain, and a plain error where it is not: after a lost
// reply, a timeout, or a status that a provider also gives after it has done the
// work. VerdictOf finds it wherever it is wrapped. Of joined errors each must be one,
// also of those in an fmt.Errorf with several %w.
type EffectError interface {
	error
	EffectVerdict() Verdict
}

type effectError struct {
	error
	verdict Verdict
	away    bool
}

func (e effectError) EffectVerdict() Verdict { return e.verdict }
func (e effectError) Unwrap() error          { return e.error }
func (e effectError) Is(target error) bool   { return e.away && target == ErrProviderAway }

// DidNotHappen marks err as one after which the effect
// certainly did not happen. The claim is released, and the message delivered again. On
// a further attempt at an effect that is in doubt it is taken for what it can say: that
// this attempt has changed nothing.
func DidNotHappen(err error) error { return effectError{error: some(err), verdict: NotHappened} }

// ProviderAway is DidNotHappen for what says nothing about the message: the provider
// could not be reached, refuses our credentials, or has limited our rate. It is an
// ErrProviderAway, does not count towards a dead letter, and a Guard with a Probe has the
// subscriber wait.
func ProviderAway(err error) error {
	return effectError{error: some(err), verdict: NotHappened, away: true}
}

// NeverWill marks err as one after which the effect did not
// happen and never will. The claim is settled as Failed, and the message
// acknowledged. On a further attempt, return it only if the provider's answer holds for
// the earlier ones too, as it does if the provider has looked at Claim.ProviderKey.
func NeverWill(err error) error { return effectError{error: some(err), verdict: Never} }

// some is err, or an error in its place.
func some(err error) error {
	if err == nil {
		return errors.New("no reason was given")
	}
	return err
}

// VerdictOf returns what err says about the effect: Unknown if it says nothing,
// Happened if err is nil.
func VerdictOf(err error) Verdict {
	if err == nil {
		return Happened
	}
	if e, ok := err.(EffectError); ok {
		return e.EffectVerdict()
	}
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		if inner := e.Unwrap(); inner != nil {
			return VerdictOf(inner)
		}
	case interface{ Unwrap() []error }:
		return verdictOfAll(e.Unwrap())
	}
	return Unknown
}

// verdictOfAll is what several errors say together, such as those of the tries of a loop:
// what each of them says. A plain error among them may be of a try that had the effect,
// so then nothing is known.
func verdictOfAll(errs []error) (verdict Verdict) {
	for i, err := range errs {
		said := VerdictOf(err)
		if err == nil || i > 0 && said != verdict {
			return Unknown
		}
		verdict = said
	}
	return verdict
}
