package guard

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"time"
)

// What API keys look like. Those of our own are omk_, the key's id, _ and 32 random bytes
// in base64url.
const (
	keyPrefix   = "omk_"
	keyIDBytes  = 4
	keyBytes    = 32
	leastImport = 32 // bytes of a key that another system has made
	mostImport  = 512
	leastLetter = 10 // different bytes in one
)

// NewAPIKey makes an API key and its entry for a tenants file, which holds all but the
// key. The key is omk_, the 8 hex digits of its id, _ and 43 letters of base64url: 256
// random bits. The id may be told and logged.
//
// A key is stored as its plain SHA-256. Slow and salted hashes are for passwords, of which
// people choose a few million; here there is nothing to guess, and every request pays for
// the hash.
func NewAPIKey() (apiKey string, entry KeyEntry) {
	random := make([]byte, keyBytes)
	rand.Read(random)
	id := newKeyID()
	apiKey = keyPrefix + id + "_" + base64.RawURLEncoding.EncodeToString(random)
	return apiKey, keyEntry(id, apiKey)
}

// ImportAPIKey makes the entry of an API key that another system has given out, so that
// its clients need not change. The key must be 32 to 512 letters of ASCII without spaces,
// and must be random: its plain SHA-256 does not protect one that can be guessed. Its id
// has nothing to do with it.
func ImportAPIKey(apiKey string) (KeyEntry, error) {
	if n := len(apiKey); n < leastImport || n > mostImport {
		return KeyEntry{}, fmt.Errorf("an API key to import has %d to %d letters, this has %d: give out a new one instead", leastImport, mostImport, n)
	}
	letters := make(map[byte]bool)
	for i := range len(apiKey) {
		if apiKey[i] <= ' ' || apiKey[i] > '~' {
			return KeyEntry{}, fmt.Errorf("an API key to import is printable ASCII without spaces: byte %d is not", i+1)
		}
		letters[apiKey[i]] = true
	}
	if len(letters) < leastLetter {
		return KeyEntry{}, fmt.Errorf("an API key to import is random, this has %d different letters: give out a new one instead", len(letters))
	}
	return keyEntry(newKeyID(), apiKey), nil
}

func newKeyID() string {
	id := make([]byte, keyIDBytes)
	rand.Read(id)
	return hex.EncodeToString(id)
}

func keyEntry(id, apiKey string) KeyEntry {
	digest := sha256.Sum256([]byte(apiKey))
	return KeyEntry{ID: id, SHA256: hex.EncodeToString(digest[:]), Created: time.Now().UTC().Truncate(time.Second)}
}
