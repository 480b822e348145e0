package guard

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// An Intent is what an agent wants to have done, apart from how it is done. Its request
// id is derived from it, so that a retry claims the same id as the attempt before.
//
// There is no field for the decision that routed the attempt: a retry is often routed
// anew, under another decision id, and would else be another request, and run again.
// What differs between two attempts at the same intent must not be in it.
type Intent struct {
	SessionID    string // required
	TurnID       string // required; a number in decimal digits
	StartTimeMS  int64  // when the turn began, in milliseconds since 1970
	Task         string // required; runs of white space count as one space
	CapabilityID string // required
	Provider     string // who is to do it, "" if any may

	// Constraints is JSON, usually an object; nil means {}. The order of its members and
	// white space do not matter. 1 and 1.0 are not the same.
	Constraints json.RawMessage
}

// RequestID returns the id under which the intent is claimed, a UUID in lower case:
// the bytes 0 and 2 and the first 14 of the SHA-256 of what Python's
// json.dumps(intent, sort_keys=True, separators=(",", ":")) writes for the fields of
// an Intent in snake case and schema_version 2. Programs in other languages get the
// same id for the same intent.
//
// The error names the field that is empty or not UTF-8, or says that Constraints are not
// JSON, have a member twice, or a number that is not finite.
func (i Intent) RequestID() (string, error) {
	constraints := i.Constraints
	if len(constraints) == 0 {
		constraints = json.RawMessage("{}")
	}
	canonical, err := canonicalJSON(constraints)
	if err != nil {
		return "", fmt.Errorf("intent: Constraints: %w", err)
	}
	var b strings.Builder
	if err := i.write(&b, canonical); err != nil {
		return "", err
	}
	digest := sha256.Sum256([]byte(b.String()))
	x := hex.EncodeToString(append([]byte{0, 2}, digest[:14]...))
	return x[:8] + "-" + x[8:12] + "-" + x[12:16] + "-" + x[16:20] + "-" + x[20:], nil
}

// write writes the members in the order of their names.
func (i Intent) write(b *strings.Builder, constraints []byte) error {
	for _, m := range []struct {
		field, name, text string
		raw               []byte // in place of text
	}{
		{"CapabilityID", `{"capability_id":`, i.CapabilityID, nil},
		{"Constraints", `,"constraints":`, "", constraints},
		{"Provider", `,"provider":`, i.Provider, nil},
		{"SessionID", `,"schema_version":2,"session_id":`, i.SessionID, nil},
		{"StartTimeMS", `,"start_time_ms":`, "", strconv.AppendInt(nil, i.StartTimeMS, 10)},
		{"Task", `,"task":`, strings.Join(strings.FieldsFunc(i.Task, pythonSpace), " "), nil},
		{"TurnID", `,"turn_id":`, i.TurnID, nil},
	} {
		if !utf8.ValidString(m.text) {
			return fmt.Errorf("intent: %s is not UTF-8", m.field)
		}
		if m.raw == nil && m.text == "" && m.field != "Provider" {
			return fmt.Errorf("intent: %s is empty: without it different intents would be one request", m.field)
		}
		b.WriteString(m.name)
		if m.raw == nil {
			m.raw = appendText(nil, []rune(m.text))
		}
		b.Write(m.raw)
	}
	b.WriteByte('}')
	return nil
}

// pythonSpace tells what Python's str.split splits at.
func pythonSpace(c rune) bool {
	return unicode.IsSpace(c) || c >= 0x1c && c <= 0x1f
}
