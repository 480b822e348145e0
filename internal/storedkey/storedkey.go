// Package storedkey writes idempotency keys, which are any bytes, as the text that the
// tables hold.
package storedkey

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"strings"
	"unicode/utf8"
)

const (
	// Longest is the length in bytes up to which a key is stored as it is. A B-tree
	// entry must stay below 2,704 bytes.
	Longest = 512

	// reserved is in front of every stored key that is not the caller's own.
	reserved = "oncemill:"

	// Dead is in front of the keys under which messages are given up that have none of
	// their own, or another's. A message whose own key began so could pass for one.
	Dead = reserved + "dead:"

	hexPrefix  = reserved + "hex:"
	hashPrefix = reserved + "sha256:"
)

// Of maps a key to the text that stands for it in the table. Any string of bytes
// is a key, and no two keys have the same text:
//
//   - valid UTF-8 without NUL, up to 512 bytes, stands for itself;
//   - anything else, and what starts with the reserved prefix, is written in
//     hexadecimal after "oncemill:hex:";
//   - what would be longer than 512 bytes so is hashed, after
//     "oncemill:sha256:".
func Of(key string) string {
	if len(key) <= Longest && isText(key) && !strings.HasPrefix(key, reserved) {
		return key
	}
	if len(hexPrefix)+hex.EncodedLen(len(key)) <= Longest {
		return hexPrefix + hex.EncodeToString([]byte(key))
	}
	sum := sha256.Sum256([]byte(key))
	return hashPrefix + hex.EncodeToString(sum[:])
}

func isText(key string) bool { return utf8.ValidString(key) && strings.IndexByte(key, 0) < 0 }

// Shown undoes Of, where that is possible.
func Shown(stored string) string {
	if digits, ok := strings.CutPrefix(stored, hexPrefix); ok {
		if key, err := hex.DecodeString(digits); err == nil {
			return string(key)
		}
	}
	return stored
}

var hashed = regexp.MustCompile(`^` + hashPrefix + `[0-9a-f]{64}$`)

// IsHash reports whether text is what stands for a key that is too long to be stored.
func IsHash(text string) bool { return hashed.MatchString(text) }

// A Range is the stored texts from From on and before To, in bytewise order. To ""
// is no bound.
type Range struct{ From, To string }

// Prefixed returns the ranges that hold, among others, the stored texts of all keys
// that begin with prefix and can be read back. Shown tells which they are.
func Prefixed(prefix string) (ranges []Range) {
	if isText(prefix) {
		ranges = append(ranges, Range{prefix, after(prefix)})
	}
	if prefix != "" && !strings.HasPrefix(hexPrefix, prefix) { // else they are in the first
		digits := hexPrefix + hex.EncodeToString([]byte(prefix))
		ranges = append(ranges, Range{digits, after(digits)})
	}
	return ranges
}

// after returns the first text that is behind all those that begin with prefix, in the
// order of bytes, which is that of code points. "" if there is none.
func after(prefix string) string {
	for prefix != "" {
		last, size := utf8.DecodeLastRuneInString(prefix)
		prefix = prefix[:len(prefix)-size]
		switch {
		case last == utf8.MaxRune:
			continue
		case last+1 == 0xD800: // surrogates are no characters
			last = 0xDFFF
		}
		return prefix + string(last+1)
	}
	return ""
}
