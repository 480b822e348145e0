package outbox

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"
)

// binaryMember is the member of the metadata column that holds what jsonb
// cannot: pairs of which the key or the value contains NUL or is not UTF-8, both
// in base64.
const binaryMember = "oncemill:base64"

// An encodedRow is a message as the table's columns take it.
type encodedRow struct {
	uuid        string
	metadata    string // JSON
	orderingKey []byte // nil: NULL
	payload     []byte // nil: NULL
}

func (r encodedRow) size() int {
	return len(r.uuid) + len(r.metadata) + len(r.orderingKey) + len(r.payload)
}

// encode checks the messages of one call and returns their rows.
func encode(topic string, msgs []*message.Message) ([]encodedRow, error) {
	if err := checkTopic(topic); err != nil {
		return nil, &Error{Topic: topic, Index: -1, Err: err}
	}
	rows := make([]encodedRow, len(msgs))
	for i, msg := range msgs {
		if msg == nil {
			return nil, &Error{Topic: topic, Index: i, Err: fmt.Errorf("%w: it is nil", ErrInvalid)}
		}
		row, err := encodeMessage(msg)
		if err != nil {
			return nil, &Error{Topic: topic, UUID: msg.UUID, Index: i, Err: err}
		}
		rows[i] = row
	}
	return rows, nil
}

func checkTopic(topic string) error {
	switch {
	case topic == "":
		return fmt.Errorf("%w: the topic is empty (give Publish the NATS subject or Kafka topic)", ErrInvalid)
	case !isText(topic):
		return fmt.Errorf("%w: the topic %q contains NUL or is not UTF-8 (mend the topic)", ErrInvalid, topic)
	}
	return nil
}

func encodeMessage(msg *message.Message) (encodedRow, error) {
	if !isText(msg.UUID) {
		return encodedRow{}, fmt.Errorf("%w: the UUID %q contains NUL or is not UTF-8 (encode it, in hexadecimal for one)", ErrInvalid, msg.UUID)
	}
	metadata, err := encodeMetadata(msg.Metadata)
	if err != nil {
		return encodedRow{}, fmt.Errorf("%w: metadata: %w", ErrInvalid, err)
	}
	row := encodedRow{uuid: msg.UUID, metadata: metadata, payload: msg.Payload}
	if key, ok := msg.Metadata[OrderingKeyMetadata]; ok {
		row.orderingKey = []byte(key) // not nil, even if it is empty
	}
	return row, nil
}

// isText reports whether s fits into a column of type text.
func isText(s string) bool {
	return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0
}

// encodeMetadata returns metadata, but for the ordering key, as a JSON object. Any
// bytes are allowed in keys and values; decodeMetadata gives back the same.
func encodeMetadata(metadata message.Metadata) (string, error) {
	plain := make(map[string]any, len(metadata))
	binary := make(map[string]string)
	for key, value := range metadata {
		switch {
		case key == OrderingKeyMetadata: // has a column of its own
		case isText(key) && isText(value) && key != binaryMember:
			plain[key] = value
		default:
			binary[toBase64(key)] = toBase64(value)
		}
	}
	if len(binary) > 0 {
		plain[binaryMember] = binary
	}
	text, err := json.Marshal(plain)
	return string(text), err
}

func toBase64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// decodeMetadata reads the metadata column. Rows that were inserted from SQL may
// hold values that are not strings: they become their JSON text, null the empty
// string.
func decodeMetadata(text []byte) (message.Metadata, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(text, &members); err != nil {
		return nil, fmt.Errorf("metadata is not a JSON object: %w", err)
	}
	metadata := make(message.Metadata, len(members)+1)
	for key, raw := range members {
		if key == binaryMember {
			if err := decodeBinary(raw, metadata); err != nil {
				return nil, err
			}
			continue
		}
		metadata[key] = valueText(raw)
	}
	return metadata, nil
}

func valueText(raw json.RawMessage) string {
	var s *string
	if err := json.Unmarshal(raw, &s); err != nil {
		return string(raw)
	}
	if s == nil {
		return ""
	}
	return *s
}

var errBinaryMember = errors.New("metadata member " + binaryMember + " must be an object whose keys and values are base64")

func decodeBinary(raw json.RawMessage, into message.Metadata) error {
	var pairs map[string]string
	if err := json.Unmarshal(raw, &pairs); err != nil {
		return errBinaryMember
	}
	for key, value := range pairs {
		k, errKey := base64.StdEncoding.DecodeString(key)
		v, errValue := base64.StdEncoding.DecodeString(value)
		if errKey != nil || errValue != nil {
			return errBinaryMember
		}
		into[string(k)] = string(v)
	}
	return nil
}
