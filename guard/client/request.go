package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// How long ids and leases can be.
const (
	mostID     = 512
	leastLease = 100 * time.Millisecond
	mostLease  = 30 * 24 * time.Hour
)

// A Request says what is to happen once.
type Request struct {
	// ID identifies the effect: it is derived from what is to be done, and the same on
	// every attempt and in every process, such as "order:7:charge". 1 to 512 bytes of
	// UTF-8, without NUL and U+FFFD; ids that begin with "oncemill:" or "test:" are
	// reserved. Required.
	ID string

	// Action is what kind of effect it is, such as "charge". It is what people look
	// for in the audit. Required.
	Action string

	// Agent is who makes it. "": nobody in particular.
	Agent string

	// Amount is what the effect is worth, a decimal number such as "452.00", and
	// Currency of what. They are for people, and for the sum of what was blocked.
	// Optional.
	Amount   string
	Currency string

	// Payload is what the effect is made of, as JSON of at most 64 KiB. It is kept in
	// the events; and unless there is a Fingerprint, the same id with another payload
	// is ErrKeyReused. Optional.
	Payload json.RawMessage

	// Fingerprint is in the place of the payload for that, at most 256 bytes. Optional.
	Fingerprint string

	// Lease is how long the effect may take, from 100 milliseconds to 30 days. After
	// it the claim is in doubt. 0: DefaultLease.
	Lease time.Duration
}

// check tells which field is wrong, as far as that can be told here.
func (r *Request) check() error {
	switch {
	case r.ID == "":
		return errors.New("Request.ID is empty: it must identify the effect")
	case len(r.ID) > mostID:
		return fmt.Errorf("Request.ID has %d bytes: at most %d", len(r.ID), mostID)
	case !utf8.ValidString(r.ID), strings.ContainsAny(r.ID, "\x00\uFFFD"):
		return errors.New("Request.ID must be UTF-8 without NUL and U+FFFD")
	case strings.HasPrefix(r.ID, "oncemill:"), strings.HasPrefix(r.ID, "test:"):
		return errors.New("Request.ID begins with oncemill: or test:, which is reserved")
	case r.Action == "":
		return errors.New("Request.Action is empty: it must name the kind of effect")
	case len(r.Payload) > 0 && !json.Valid(r.Payload):
		return errors.New("Request.Payload is not JSON")
	case r.Lease != 0:
		return checkLease("Request.Lease", r.Lease)
	}
	return nil
}

func checkLease(name string, lease time.Duration) error {
	if lease < leastLease || lease > mostLease {
		return fmt.Errorf("%s is %v: must be from %v to %v", name, lease, leastLease, mostLease)
	}
	return nil
}

// body is what is sent. The lease always is, for only then is it known here.
func (r *Request) body(nonce string) ([]byte, error) {
	return json.Marshal(struct {
		ID          string          `json:"request_id"`
		Action      string          `json:"action"`
		Agent       string          `json:"agent_id,omitempty"`
		Nonce       string          `json:"nonce"`
		Fingerprint string          `json:"fingerprint,omitempty"`
		Payload     json.RawMessage `json:"payload,omitempty"`
		Amount      string          `json:"amount,omitempty"`
		Currency    string          `json:"currency,omitempty"`
		Lease       float64         `json:"lease_seconds"`
		Replay      bool            `json:"replay"`
	}{r.ID, r.Action, r.Agent, nonce, r.Fingerprint, r.Payload, r.Amount, r.Currency, orDefault(r.Lease, DefaultLease).Seconds(), true})
}
