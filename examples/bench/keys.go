package main

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"
)

// keysPerMillisecond spreads the keys of a turn over time.
const keysPerMillisecond = 64

// keys are UUIDs, which messages are told apart by: of version 7, which are in the order
// of time, or at random.
type keys struct {
	from   int64 // milliseconds
	made   int64
	random bool
}

func newKeys(random bool) *keys { return &keys{from: time.Now().UnixMilli(), random: random} }

func (k *keys) next() string {
	var b [16]byte
	for i := range 2 {
		r := rand.Uint64()
		for j := range 8 {
			b[8*i+j] = byte(r >> (8 * j))
		}
	}
	b[6] = b[6]&0x0f | 0x40
	if !k.random {
		at, n := k.from+k.made/keysPerMillisecond, k.made%keysPerMillisecond
		for i := range 6 {
			b[i] = byte(at >> (40 - 8*i))
		}
		b[6], b[7] = 0x70|byte(n>>8), byte(n)
		k.made++
	}
	b[8] = b[8]&0x3f | 0x80
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// keySQL is an expression for the same in the order of time, numbered by g, from a time in
// milliseconds on.
func keySQL(from string) string {
	at := fmt.Sprintf("lpad(to_hex(%s + g / %d), 12, '0')", from, keysPerMillisecond)
	return fmt.Sprintf("overlay(%s placing '-' from 9 for 0) || '-7' || lpad(to_hex(g %% %d), 3, '0') || '-8' || overlay(substr(md5(random()::text), 1, 15) placing '-' from 4 for 0)",
		at, keysPerMillisecond)
}

// payloadBytes is how large each message is.
const payloadBytes = 200

// filler is what payloads have in common, which JSON can hold.
var filler = strings.Repeat("x", payloadBytes)

func payload(key string) []byte {
	begun := `{"id":"` + key + `","note":"`
	return []byte(begun + filler[:payloadBytes-len(begun)-2] + `"}`)
}

// payloadSQL is an expression for the same.
func payloadSQL(key string) string {
	return fmt.Sprintf(`rpad('{"id":"' || %s || '","note":"', %d, 'x') || '"}'`, key, payloadBytes-2)
}

// accountOf tells which row a message updates where these are few.
func accountOf(key string) (int, error) {
	n, err := strconv.ParseUint(key[len(key)-8:], 16, 64)
	return int(n % hotRows), err
}
