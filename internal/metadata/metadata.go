// Package metadata encodes a message's metadata for a column of type jsonb.
package metadata

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// binaryMember is the member of the metadata column that holds what jsonb
// cannot: pairs of which the key or the value contains NUL or is not UTF-8, both
// in base64.
const binaryMember = "oncemill:base64"

// IsText reports whether s fits into a column of type text.
func IsText(s string) bool {
	return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0
}

// Encode returns metadata, but for the keys in without, as a JSON object. Any bytes
// are allowed in keys and values; Decode gives back the same.
func Encode(metadata map[string]string, without ...string) (string, error) {
	plain := make(map[string]any, len(metadata))
	binary := make(map[string]string)
	for key, value := range metadata {
		switch {
		case slices.Contains(without, key):
		case IsText(key) && IsText(value) && key != binaryMember:
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

// Decode reads the metadata column. Rows that were inserted from SQL may
// hold values that are not strings: they become their JSON text, null the empty
// string.
func Decode(text []byte) (map[string]string, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(text, &members); err != nil {
		return nil, fmt.Errorf("metadata is not a JSON object: %w", err)
	}
	metadata := make(map[string]string, len(members)+1)
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

func decodeBinary(raw json.RawMessage, into map[string]string) error {
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
