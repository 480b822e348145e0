package oncemill

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"unicode/utf8"
)

const (
	// maxKey is the length in bytes up to which a key is stored as it is. A
	// B-tree entry must stay below 2,704 bytes.
	maxKey = 512

	// reserved is in front of every stored key that is not the caller's own.
	reserved = "oncemill:"

	hexPrefix  = reserved + "hex:"
	hashPrefix = reserved + "sha256:"
)

// storedKey maps a key to the text that stands for it in the table. Any string
// of bytes is a key, and no two keys have the same text:
//
//   - valid UTF-8 without NUL, up to 512 bytes, stands for itself;
//   - anything else, and what starts with the reserved prefix, is written in
//     hexadecimal after "oncemill:hex:";
//   - what would be longer than 512 bytes so is hashed, after
//     "oncemill:sha256:".
func storedKey(key string) string {
	if len(key) <= maxKey && utf8.ValidString(key) && strings.IndexByte(key, 0) < 0 && !strings.HasPrefix(key, reserved) {
		return key
	}
	if len(hexPrefix)+hex.EncodedLen(len(key)) <= maxKey {
		return hexPrefix + hex.EncodeToString([]byte(key))
	}
	sum := sha256.Sum256([]byte(key))
	return hashPrefix + hex.EncodeToString(sum[:])
}
