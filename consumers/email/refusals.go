package email

import (
	"fmt"
	"slices"
	"strings"

	"github.com/oncemill/oncemill"
)

// refusals are the recipients that were refused.
type refusals []*ReplyError

// verdict says what becomes of the mail. Refusals for good do not go away with those
// that are not.
func (r refusals) verdict(recipients int) error {
	err := &RecipientsError{r, recipients}
	switch {
	case slices.ContainsFunc(r, (*ReplyError).isAway):
		return oncemill.ProviderAway(err)
	case slices.ContainsFunc(r, func(e *ReplyError) bool { return e.Code/100 == 5 }):
		return oncemill.NeverWill(err)
	}
	return oncemill.DidNotHappen(err)
}

// A RecipientsError says which recipients a server has refused. Nobody got the mail.
type RecipientsError struct {
	Refused    []*ReplyError
	Recipients int // of the mail
}

// Error names the first ten.
func (e *RecipientsError) Error() string {
	const most = 10
	var text strings.Builder
	fmt.Fprintf(&text, "email: RCPT: %d of %d recipients were refused, so nobody got the mail: ", len(e.Refused), e.Recipients)
	for i, r := range e.Refused {
		if i == most {
			text.WriteString("; and others")
			break
		}
		if i > 0 {
			text.WriteString("; ")
		}
		fmt.Fprintf(&text, "%s: %d %s", r.Recipient, r.Code, r.Text)
	}
	return text.String()
}

func (e *RecipientsError) Unwrap() []error {
	all := make([]error, len(e.Refused))
	for i, r := range e.Refused {
		all[i] = r
	}
	return all
}
