package guard

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"sync/atomic"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/schema"
)

// A settlement token is the fencing token of an attempt, as 16 hexadecimal digits, and 48
// of an HMAC-SHA256 over the consumer, the id and the fencing token. It needs no storing,
// and says by itself which attempt and which id it is for. The key of the HMAC is the
// guards' own secret, in Postgres: made by the first of them, read by all.

const (
	secretName = "settlement tokens"
	secretSize = 32
	macSize    = 24
	tokenSize  = 8 + macSize
)

// secret is the key of the HMAC, once it is known.
type secret struct {
	key atomic.Pointer[[]byte]
}

// load reads the key, or makes it. Several may do so at a time, and have the same one.
func (s *secret) load(ctx context.Context, in *oncemill.Inbox) error {
	if s.key.Load() != nil {
		return nil
	}
	table := schema.Quote(in.Schema) + ".secrets"
	made := make([]byte, secretSize)
	_, _ = rand.Read(made) // it never fails
	if _, err := in.DB.ExecContext(ctx, `INSERT INTO `+table+` (name, secret) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING`, secretName, made); err != nil {
		return fmt.Errorf("guard: make the key that settlement tokens are signed with: %w", err)
	}
	var key []byte
	if err := in.DB.QueryRowContext(ctx, `SELECT secret FROM `+table+` WHERE name = $1`, secretName).Scan(&key); err != nil {
		return fmt.Errorf("guard: read the key that settlement tokens are signed with: %w", err)
	}
	s.key.Store(&key)
	return nil
}

// sign returns the settlement token of an attempt. The key has to be loaded.
func (s *secret) sign(consumer, id string, token int64) string {
	mac := hmac.New(sha256.New, *s.key.Load())
	var number [8]byte
	binary.BigEndian.PutUint64(number[:], uint64(token)) //nolint:gosec // tokens are positive
	mac.Write(number[:])
	mac.Write([]byte(consumer))
	mac.Write([]byte{0}) // no consumer's name contains it
	mac.Write([]byte(id))
	return hex.EncodeToString(mac.Sum(number[:])[:tokenSize])
}

// verify returns the fencing token of a settlement token that is one for the id.
func (s *secret) verify(consumer, id, text string) (token int64, ok bool) {
	if len(text) != 2*tokenSize {
		return 0, false
	}
	number, err := hex.DecodeString(text[:16])
	if err != nil {
		return 0, false
	}
	token = int64(binary.BigEndian.Uint64(number)) //nolint:gosec // a wrong one is not signed
	return token, hmac.Equal([]byte(s.sign(consumer, id, token)), []byte(text))
}
