package client

import "errors"

// A Verdict says what an error proves of an effect.
type Verdict string

const (
	// Unknown: nobody knows whether it happened. It is what an error means that does
	// not say otherwise.
	Unknown Verdict = ""

	// NotHappened: it did not happen, and can no longer happen by itself.
	NotHappened Verdict = "not happened"

	// Never: it did not happen, and trying again cannot help.
	Never Verdict = "never"
)

// An EffectError is an error that knows what became of the effect. VerdictOf finds it
// wherever it is wrapped. Of joined errors each must be one.
type EffectError interface {
	error
	EffectVerdict() Verdict
}

type effectError struct {
	error
	verdict Verdict
}

func (e effectError) EffectVerdict() Verdict { return e.verdict }
func (e effectError) Unwrap() error          { return e.error }

// DidNotHappen marks err as one after which the effect certainly did not happen: Do
// releases the claim, and the id is free again. That takes proof, such as an error from
// before anything was sent. A status like 503 is none.
func DidNotHappen(err error) error { return effectError{some(err), NotHappened} }

// NeverWill marks err as one after which the effect did not happen and never will: Do
// has the claim fail, and whoever claims the id gets ErrFailed with err's text.
func NeverWill(err error) error { return effectError{some(err), Never} }

// some is err, or an error in its place.
func some(err error) error {
	if err == nil {
		return errors.New("no reason was given")
	}
	return err
}

// VerdictOf returns what an error says about the effect.
func VerdictOf(err error) Verdict {
	switch e := err.(type) {
	case EffectError:
		return e.EffectVerdict()
	case interface{ Unwrap() error }:
		return VerdictOf(e.Unwrap())
	case interface{ Unwrap() []error }:
		return verdictOfAll(e.Unwrap())
	}
	return Unknown
}

// verdictOfAll is what several errors say together: what each of them says. A plain one
// among them may be of a try that had the effect.
func verdictOfAll(errs []error) (verdict Verdict) {
	for i, err := range errs {
		said := VerdictOf(err)
		if i > 0 && said != verdict {
			return Unknown
		}
		verdict = said
	}
	return verdict
}
