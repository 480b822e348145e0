package email

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/mail"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/oneline"
)

// What a mail may have at most. Every server has to take a hundred recipients (RFC
// 5321, 4.5.3.1.8); many take no more.
const (
	mostRecipients  = 100
	mostHeaders     = 50
	mostAttachments = 50
	mostText        = 2000 // bytes of a subject, a header or a name
	mostLocalPart   = 64   // RFC 5321, 4.5.3.1.1
	mostDomain      = 255
)

// A Mail is what to send. To is required or one of Cc and Bcc, and one of Subject,
// Text and HTML. Addresses are written as in a mail: "ann@example.com" or
// "Ann <ann@example.com>". As JSON it has the names below:
//
//	{"to": ["Ann <ann@example.com>"], "subject": "Your order", "text": "It is on its way."}
type Mail struct {
	From    string   `json:"from"` // "" means Sender.From
	To      []string `json:"to"`
	Cc      []string `json:"cc"`
	Bcc     []string `json:"bcc"` // gets the mail, and is not named in it
	ReplyTo string   `json:"reply_to"`
	Subject string   `json:"subject"`

	// Text and HTML are the body. With both, the reader's program chooses.
	Text string `json:"text"`
	HTML string `json:"html"`

	// Headers are further ones, such as "List-Unsubscribe". Those that the other
	// fields and the Sender make are refused.
	Headers map[string]string `json:"headers"`

	Attachments []Attachment `json:"attachments"`
}

// An Attachment is a file in a mail.
type Attachment struct {
	Name        string `json:"name"`
	ContentType string `json:"content_type"` // "" means application/octet-stream
	Content     []byte `json:"content"`      // in JSON as base64
}

// An InputError says which part of a mail is wrong. Nothing was sent, and sending it
// again cannot help: its verdict is oncemill.Never.
type InputError struct {
	Field  string // as in the JSON
	Reason string // what it is, and what it must be
}

func (e *InputError) Error() string                   { return "email: " + e.Field + " " + e.Reason }
func (e *InputError) EffectVerdict() oncemill.Verdict { return oncemill.Never }

func wrong(field, reason string, args ...any) error {
	return &InputError{field, fmt.Sprintf(reason, args...)}
}

func isInputError(err error) bool {
	var e *InputError
	return errors.As(err, &e)
}

// DecodeJSON makes a mail of a message's payload, which must be one JSON object with
// the fields of Mail and no others.
func DecodeJSON(msg *message.Message) (m Mail, err error) {
	if !utf8.Valid(msg.Payload) {
		return m, wrong("payload", "is not UTF-8: send JSON")
	}
	d := json.NewDecoder(bytes.NewReader(msg.Payload))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return Mail{}, brokenJSON(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Mail{}, wrong("payload", "goes on after the JSON object: send one object in a message")
	}
	return m, nil
}

func brokenJSON(err error) error {
	var mismatch *json.UnmarshalTypeError
	switch {
	case errors.As(err, &mismatch) && mismatch.Field != "":
		return wrong(mismatch.Field, "is a JSON %.40s: must be %s", mismatch.Value, jsonKind(mismatch.Type.String()))
	case errors.As(err, &mismatch):
		return wrong("payload", "is a JSON %.40s: must be an object", mismatch.Value)
	}
	if name, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		return wrong(oneline.Of(name, 80), "is not a field of a mail: leave it out, or put it into headers")
	}
	return wrong("payload", "is broken JSON (%v): send one object", err)
}

func jsonKind(goType string) string {
	switch goType {
	case "[]string":
		return "a list of strings"
	case "string":
		return "a string"
	case "map[string]string":
		return "an object of strings"
	}
	return "as in the documentation of Mail"
}

// parseAddress reads one address. The error says what is wrong with it, and begins
// with a verb.
func parseAddress(text string) (*mail.Address, error) {
	if strings.ContainsFunc(text, unicode.IsControl) || !utf8.ValidString(text) {
		return nil, fmt.Errorf("is %.80q: must not contain line breaks or other control characters", text)
	}
	a, err := mail.ParseAddress(text)
	if err != nil {
		return nil, fmt.Errorf("is %.80q: must be one address, such as ann@example.com or Ann <ann@example.com> (%v)", text, err)
	}
	at := strings.LastIndexByte(a.Address, '@')
	local, domain := a.Address[:at], a.Address[at+1:]
	switch {
	case strings.ContainsFunc(a.Name, unicode.IsControl): // was encoded
		return nil, fmt.Errorf("is %.80q: the name must not contain control characters", text)
	case len(a.Name) > mostText:
		return nil, fmt.Errorf("has a name of %d bytes: at most %d", len(a.Name), mostText)
	case len(local) > mostLocalPart || len(domain) > mostDomain:
		return nil, fmt.Errorf("is %.80q: at most %d bytes before the @ and %d after it", text, mostLocalPart, mostDomain)
	case strings.ContainsFunc(a.Address, isMisread), strings.ContainsAny(local, "@[]"):
		return nil, fmt.Errorf("is %.80q: must do without spaces, quotes and brackets, which servers misread", text)
	}
	a.Address = local + "@" + strings.ToLower(domain)
	return a, nil
}

// isMisread is for characters that are allowed in quotes, or in domains that are
// addresses, and that have made servers see other commands or recipients.
func isMisread(r rune) bool {
	return strings.ContainsRune(`<>"\,;:()`, r) || unicode.IsSpace(r) || unicode.IsControl(r) || r == utf8.RuneError
}

// parseAll reads the addresses of a field.
func parseAll(field string, texts []string) ([]*mail.Address, error) {
	if len(texts) > mostRecipients {
		return nil, wrong(field, "has %d addresses: at most %d in a mail; send several mails", len(texts), mostRecipients)
	}
	all := make([]*mail.Address, len(texts))
	for i, text := range texts {
		a, err := parseAddress(text)
		if err != nil {
			return nil, wrong(fmt.Sprintf("%s[%d]", field, i), "%v", err)
		}
		all[i] = a
	}
	return all, nil
}
