package middleware

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/delivery"
)

// A KeyFunc tells the idempotency key of a message: the same for every delivery
// of the message, and of no other message to the same consumer. Any non-empty
// string of bytes will do. An error, or an empty key, is an oncemill.ErrNoKey.
type KeyFunc func(msg *message.Message) (string, error)

// ByUUID is the message's UUID. It fits messages whose producer sets it, as
// Watermill's publishers do.
func ByUUID(msg *message.Message) (string, error) { return uuidOf(msg, "Key") }

// uuidOf names the field that decides about keys, should there be no UUID.
func uuidOf(msg *message.Message, field string) (string, error) {
	if msg.UUID == "" {
		return "", fmt.Errorf("%w: the message has no UUID: have the producer set it, in NATS and Kafka as the header _watermill_message_uuid, or set %s to ByPosition, ByMetadata, ByJSON or kafka.ByRecordKey", oncemill.ErrNoKey, field)
	}
	return msg.UUID, nil
}

// ByMetadata is the value of a metadata entry.
func ByMetadata(name string) KeyFunc {
	return func(msg *message.Message) (string, error) {
		if key := msg.Metadata.Get(name); key != "" {
			return key, nil
		}
		return "", fmt.Errorf("%w: message %q has no metadata %q", oncemill.ErrNoKey, msg.UUID, name)
	}
}

// ByJSON is a string or a number in the payload, which has to be one JSON
// value in UTF-8. path names the member, and with more than one name the members
// on the way to it. A number is taken as it is written; the number 7 and the
// string "7" are the same key, 7 and 7.0 are not.
func ByJSON(path ...string) KeyFunc {
	where := strings.Join(path, ".")
	return func(msg *message.Message) (string, error) {
		value, err := jsonMember(msg.Payload, path)
		if err != nil {
			return "", fmt.Errorf("%w: message %q: JSON member %q of the payload: %w", oncemill.ErrNoKey, msg.UUID, where, err)
		}
		return value, nil
	}
}

func jsonMember(payload []byte, path []string) (string, error) {
	// encoding/json puts U+FFFD in the place of what is no text, so that different
	// values would become one key.
	if !utf8.Valid(payload) {
		return "", errors.New("the payload is not valid UTF-8")
	}
	decoder := json.NewDecoder(bytes.NewReader(payload))
	decoder.UseNumber()
	var value any
	if err := decoder.Decode(&value); err != nil {
		return "", err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return "", errors.New("more than one value")
	}
	for _, name := range path {
		object, ok := value.(map[string]any)
		if !ok {
			return "", fmt.Errorf("no object that could have %q", name)
		}
		if value, ok = object[name]; !ok {
			return "", fmt.Errorf("%q is missing", name)
		}
	}
	switch value := value.(type) {
	case string:
		if value == "" {
			return "", errors.New("is an empty string")
		}
		if strings.ContainsRune(value, utf8.RuneError) && bytes.Contains(payload, []byte(`\u`)) {
			return "", errors.New("has U+FFFD in it, which may stand for half of a surrogate pair")
		}
		return value, nil
	case json.Number:
		return value.String(), nil
	default:
		return "", errors.New("is neither a string nor a number")
	}
}

// ByPosition is the message's place in the broker, which Oncemill's own
// subscribers tell. It fits messages from producers that give them no identity:
// it recognises a message that is delivered again, but not one that its producer
// has sent twice.
func ByPosition(msg *message.Message) (string, error) {
	info, _ := delivery.From(msg.Context())
	if info.Position == "" {
		return "", fmt.Errorf("%w: message %q comes from a subscriber that does not tell its position; use Oncemill's subscriber or another KeyFunc", oncemill.ErrNoKey, msg.UUID)
	}
	return info.Position, nil
}

// PayloadFingerprint is the SHA-256 of the payload, for Once.Fingerprint and
// Guard.Fingerprint.
func PayloadFingerprint(msg *message.Message) ([]byte, error) {
	sum := sha256.Sum256(msg.Payload)
	return sum[:], nil
}
