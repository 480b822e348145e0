package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
)

var (
	// ErrSettled means that the effect has happened: see Error.Result.
	ErrSettled = errors.New("effect has happened")

	// ErrFailed means that the effect did not happen and never will: see Error.Reason.
	ErrFailed = errors.New("effect has failed for good")

	// ErrInFlight means that somebody else is making the effect at this moment.
	ErrInFlight = errors.New("effect is being made by another")

	// ErrInDoubt means that an attempt has ended, and nobody knows whether the effect
	// happened. An operator or a resolver has to find out.
	ErrInDoubt = errors.New("effect is in doubt")

	// ErrKeyReused means that the id is claimed with another fingerprint or payload:
	// two different effects have one id.
	ErrKeyReused = errors.New("request id was used before for another payload")

	// ErrFenced means that a claim is no longer its caller's: it was given to another
	// attempt, resolved, or released.
	ErrFenced = errors.New("claim was taken over")

	// ErrLeaseOver means that the claim's lease is over, or is about to be. It is the
	// cause for which the context of Do's function ends.
	ErrLeaseOver = errors.New("lease of the claim is about to end")

	// ErrUnavailable means that the guard could not be reached, or could not answer.
	ErrUnavailable = errors.New("guard is unavailable")

	// ErrRateLimited means that the guard gets too many requests: see Error.RetryAfter.
	ErrRateLimited = errors.New("guard has limited the rate")

	// ErrDenied means that the API key, or another secret, is missing or wrong.
	ErrDenied = errors.New("guard has denied access")

	// ErrNotFound means that the guard knows no such id, or that what is at the URL is
	// no guard.
	ErrNotFound = errors.New("guard has not found it")

	// ErrInvalid means that a field of a Client or of a Request is wrong, or that the
	// guard has refused the request for what is in it.
	ErrInvalid = errors.New("request is invalid")
)

// An Op says what failed.
type Op string

// What a Client does.
const (
	OpCheck   Op = "check"
	OpClaim   Op = "claim"
	OpEffect  Op = "effect" // the function that Do was given
	OpSettle  Op = "settle"
	OpRelease Op = "release"
	OpFail    Op = "fail"
	OpExtend  Op = "extend"
	OpAudit   Op = "audit"
	OpEvents  Op = "events"
)

// An Error is what every function of this package returns. errors.Is finds the sentinels
// in it, what the network said, and what Do's function returned. It has no secrets in its
// text.
type Error struct {
	Op     Op
	ID     string          // the request's; "": none
	Status int             // of HTTP; 0: there was no answer
	Code   string          // the guard's, such as "in_flight"; "": none
	Detail string          // the guard's words, in one line; "": none
	Result json.RawMessage // with ErrSettled: what the claim was settled with; nil: the guard does not show it
	Reason string          // with ErrFailed and ErrInDoubt: why; "": nobody has said

	// RetryAfter is when the guard wants to be asked again, with ErrRateLimited and
	// ErrUnavailable. 0: it does not say.
	RetryAfter time.Duration

	Err error // one of the sentinels, perhaps with what lies behind it
}

// Error says what failed, for which id. An id longer than 100 bytes is cut.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "oncemill guard: %s", e.Op)
	if e.ID != "" {
		fmt.Fprintf(&b, " %s", line(e.ID, 100))
	}
	fmt.Fprintf(&b, ": %v", e.Err)
	for _, part := range []string{e.Reason, e.Detail} {
		if part != "" {
			b.WriteString(": " + line(part, mostDetail))
		}
	}
	if e.Status != 0 {
		fmt.Fprintf(&b, " (%s)", strings.TrimSpace(fmt.Sprint("HTTP ", e.Status, " ", e.Code)))
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

func failed(op Op, id string, err error) *Error { return &Error{Op: op, ID: id, Err: err} }

// mostDetail is how many bytes of a stranger's words an error shows.
const mostDetail = 300

// line makes the words of strangers fit for a line, of at most so many bytes.
func line(text string, most int) string {
	text = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(text, "\uFFFD"), func(r rune) bool {
		return unicode.IsSpace(r) || unicode.IsControl(r) || unicode.Is(unicode.Cf, r)
	}), " ")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "..."
	}
	return text
}

// hiddenError is an error without secrets in its text, which is where a proxy or a
// transport might put them.
type hiddenError struct {
	error
	hide *strings.Replacer
}

func (e hiddenError) Error() string { return line(e.hide.Replace(e.error.Error()), mostDetail) }
func (e hiddenError) Unwrap() error { return e.error }

// hide returns what takes the client's secrets, and a claim's token, out of a text.
func (c *Client) hide(token string) *strings.Replacer {
	var pairs []string
	for _, secret := range []string{c.APIKey, c.AuditToken, token} {
		if secret != "" {
			pairs = append(pairs, secret, "[secret]")
		}
	}
	return strings.NewReplacer(pairs...)
}
