// Package lot draws by a seed what happens in a test of faults, so that a run can be
// repeated.
package lot

import (
	crypto "crypto/rand"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

// Variables that repeat a run.
const (
	SeedVariable     = "ONCEMILL_TEST_SEED"
	MessagesVariable = "ONCEMILL_TEST_MESSAGES"
)

// Of returns what a seed says about one thing. Whatever draws the same lot gets the same
// numbers, in whichever process and order.
func Of(seed uint64, about ...any) *rand.Rand {
	hash := fnv.New64a()
	fmt.Fprintln(hash, about...)
	return rand.New(rand.NewPCG(seed, hash.Sum64()))
}

// Seed returns the seed that is wanted, or another one each time, and logs it.
func Seed(t *testing.T) uint64 {
	t.Helper()
	var random [4]byte
	_, _ = crypto.Read(random[:])
	seed := uint64(binary.BigEndian.Uint32(random[:]))
	if text := os.Getenv(SeedVariable); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("%s: %v", SeedVariable, err)
		}
	}
	t.Logf("to repeat the draws: %s=%d", SeedVariable, seed)
	return seed
}

// Messages returns how many messages are wanted, or else those of the test itself.
func Messages(t *testing.T, own int) int {
	t.Helper()
	text := os.Getenv(MessagesVariable)
	if text == "" {
		return own
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", MessagesVariable, err)
	}
	return n
}
