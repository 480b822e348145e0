package ordered_test

import (
	"testing"
	"time"

	"github.com/oncemill/oncemill/testcontainers/internal/actor"
)

func TestMain(m *testing.M) { actor.Main(m, roleVariable, play) }

// limit is how long a test waits for what should happen soon, so that one that hangs
// says where.
const limit = 2 * time.Minute

// eventually waits until something is so that gives no signal. state describes how it
// is instead.
func eventually(t *testing.T, what string, condition func() bool, state ...func() string) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !condition() {
		if time.Now().After(deadline) {
			for _, s := range state {
				t.Log(s())
			}
			t.Fatalf("still not so: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
