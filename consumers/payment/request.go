package payment

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
)

// Kinds of requests that Stripe knows.
const (
	Charge = "charge"
	Refund = "refund"
)

// A Request is one payment to make. As JSON it has the names in lower case:
//
//	{"amount": 1050, "currency": "usd", "customer": "cus_9s6XKzkNRiz8i3", "payment_method": "pm_1MqLiJLkdIwHu7ix"}
//	{"kind": "refund", "payment": "pi_3MtwBwLkdIwHu7ix28a3tqPa", "amount": 1050, "currency": "usd"}
type Request struct {
	// Kind says what to do. "" means Charge to Stripe. Another provider may have
	// kinds of its own.
	Kind string

	// Amount is in the smallest unit of the currency: 1050 for 10.50 USD, 1050 for
	// 1050 JPY. Required.
	Amount int64

	// Currency is its ISO code, in upper or lower case. Required.
	Currency string

	// Customer is who pays, by the provider's id. Stripe requires it for a payment
	// method that belongs to a customer.
	Customer string

	// PaymentMethod is what they pay with. Required for a charge.
	PaymentMethod string

	// Payment is what a refund refunds: to Stripe the id of a PaymentIntent ("pi_...")
	// or of a Charge ("ch_..."). Required for a refund.
	Payment string

	// Description is shown to people. Optional.
	Description string

	// Metadata is kept with the payment. Names that begin with "oncemill_" are not
	// allowed. Optional.
	Metadata map[string]string
}

// An InputError says which part of a request is wrong. Nothing was sent, and sending
// it again cannot help: its verdict is oncemill.Never.
type InputError struct {
	Field  string // as in the JSON
	Reason string // what it is, and what it must be
}

func (e *InputError) Error() string                   { return "payment: " + e.Field + " " + e.Reason }
func (e *InputError) EffectVerdict() oncemill.Verdict { return oncemill.Never }

func wrong(field, reason string, args ...any) error {
	return &InputError{field, fmt.Sprintf(reason, args...)}
}

// DecodeJSON makes a request of a message's payload, which must be one JSON object
// with the fields of Request and no others, in lower case: kind, amount, currency,
// customer, payment_method, payment, description, metadata. It is stricter than
// encoding/json: a name that occurs twice, or in another case, is an error, and so is
// an amount that is not a whole number.
func DecodeJSON(msg *message.Message) (Request, error) {
	fields, err := objectFields(msg.Payload)
	if err != nil {
		return Request{}, err
	}
	var r Request
	texts := map[string]*string{
		"kind": &r.Kind, "currency": &r.Currency, "customer": &r.Customer, "payment_method": &r.PaymentMethod,
		"payment": &r.Payment, "description": &r.Description,
	}
	for _, f := range fields {
		text, isText := texts[f.name]
		switch {
		case f.name == "amount":
			r.Amount, err = decodeAmount(f.value)
		case f.name == "metadata":
			r.Metadata, err = decodeMetadata(f.value)
		case isText:
			err = decodeText(f, text)
		default:
			err = wrong(strconv.Quote(f.name), "is not a field of a payment: leave it out, or put it into metadata")
		}
		if err != nil {
			return Request{}, err
		}
	}
	return r, nil
}

type field struct {
	name  string
	value json.RawMessage
}

// objectFields returns the fields of a JSON object in their order.
func objectFields(payload []byte) ([]field, error) {
	if !utf8.Valid(payload) {
		return nil, wrong("payload", "is not UTF-8: send JSON")
	}
	d := json.NewDecoder(bytes.NewReader(payload))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, wrong("payload", "is not a JSON object: send {\"amount\": ..., \"currency\": ...}")
	}
	var fields []field
	seen := map[string]bool{}
	for d.More() {
		t, err := d.Token()
		name, ok := t.(string)
		if err != nil || !ok {
			return nil, brokenJSON(err)
		}
		if seen[name] {
			return nil, wrong(strconv.Quote(name), "is there twice: send it once")
		}
		seen[name] = true
		f := field{name: name}
		if err := d.Decode(&f.value); err != nil {
			return nil, brokenJSON(err)
		}
		fields = append(fields, f)
	}
	if _, err := d.Token(); err != nil {
		return nil, brokenJSON(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, wrong("payload", "goes on after the JSON object: send one object in a message")
	}
	return fields, nil
}

func brokenJSON(err error) error {
	return wrong("payload", "is broken JSON (%v): send one object", err)
}

func decodeText(f field, into *string) error {
	if json.Unmarshal(f.value, into) != nil || f.value[0] != '"' {
		return wrong(f.name, "is %.40s: must be a string", f.value)
	}
	return nil
}

func decodeMetadata(value json.RawMessage) (map[string]string, error) {
	fields, err := objectFields(value)
	if err != nil {
		return nil, wrong("metadata", "is %.40s: must be an object of strings, each name once", value)
	}
	m := make(map[string]string, len(fields))
	for _, f := range fields {
		var text string
		if err := decodeText(field{"metadata." + f.name, f.value}, &text); err != nil {
			return nil, err
		}
		m[f.name] = text
	}
	return m, nil
}

// decodeAmount takes an integer literal and nothing else: a float64 would round, and
// 10.50 or 1.05e3 shows that somebody took it for another unit.
func decodeAmount(value json.RawMessage) (int64, error) {
	text := string(value)
	n, err := strconv.ParseInt(text, 10, 64)
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, strconv.ErrRange):
		return 0, wrong("amount", "is %.40s: must be at most %d, in the currency's smallest unit", text, int64(math.MaxInt64))
	case strings.HasPrefix(text, `"`):
		return 0, wrong("amount", "is %.40s: must be a number, without quotes", text)
	}
	return 0, wrong("amount", "is %.40s: must be a whole number of the currency's smallest unit, such as 1050 for 10.50 USD", text)
}
