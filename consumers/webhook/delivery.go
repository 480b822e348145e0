package webhook

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/oncemill/oncemill/internal/oneline"
)

// Metadata of the messages that are published for events. The message's UUID is the
// event's key, and its payload is the body of the request, byte for byte.
const (
	ProviderMetadata    = "webhook-provider"     // "stripe", "github" or "twilio"
	TypeMetadata        = "webhook-type"         // what kind of event it is, such as "invoice.paid"
	KeyMetadata         = "webhook-key"          // the idempotency key, which is the message's UUID too
	ContentTypeMetadata = "webhook-content-type" // of the body, as the provider has sent it
	QueryMetadata       = "webhook-query"        // of the request's URL; Twilio only, which signs it
)

// A Delivery is a request whose signature is right, as a KeyFunc sees it.
type Delivery struct {
	// Provider is "stripe", "github" or "twilio".
	Provider string

	// Header is the request's. No provider signs it.
	Header http.Header

	// Form has the parameters of a body that is a form. Twilio only; nil otherwise.
	Form url.Values

	// Body is the request's, as it came.
	Body []byte

	// Signed is the SHA-256 of all that the signature covers: of the body for GitHub,
	// of the URL and the parameters for Twilio, the same for all spellings of either.
	Signed [sha256.Size]byte
}

// A KeyFunc tells the idempotency key of an event: the same for every delivery of it,
// and of no other event. A key is 1 to 255 bytes of visible ASCII. After an error, or
// with another key, the delivery is refused with 400.
type KeyFunc func(d *Delivery) (string, error)

// BySigned is a key that nobody can change who does not know the secret: the SHA-256 of
// what the signature covers. Two events that say exactly the same are one with it.
func BySigned(d *Delivery) (string, error) {
	return "sha256:" + hex.EncodeToString(d.Signed[:]), nil
}

// mostKey is the longest key, which is also a message's UUID and a header at brokers.
const mostKey = 255

// checkKey says what is wrong with a key. Brokers carry it in headers, and people look
// for it.
func checkKey(key string) error {
	if key == "" || len(key) > mostKey {
		return fmt.Errorf("has %d bytes: must have 1 to %d", len(key), mostKey)
	}
	for i := range len(key) {
		if key[i] <= ' ' || key[i] > '~' {
			return fmt.Errorf("has a byte that is not visible ASCII, at position %d", i)
		}
	}
	return nil
}

// keyOf asks a user's function for a key.
func keyOf(f KeyFunc, d *Delivery) (string, error) {
	key, err := f(d)
	if err != nil {
		return "", refuse(http.StatusBadRequest, "the event has no key")
	}
	if err := checkKey(key); err != nil {
		return "", refuse(http.StatusBadRequest, "the event's key %v", err)
	}
	return key, nil
}

// An event is what a verifier makes of a delivery.
type event struct {
	key         string
	kind        string            // for TypeMetadata
	origin      time.Time         // when it happened, if that is signed
	fingerprint []byte            // where every delivery of the event has the same body
	metadata    map[string]string // beside what all providers have
}

// mostText is the longest piece of a request's header that goes into metadata.
const mostText = 255

// text makes a stranger's words fit for metadata, which brokers carry in headers.
func text(s string) string { return oneline.Of(s, mostText) }
