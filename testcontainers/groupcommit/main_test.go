package groupcommit_test

import (
	"testing"
	"time"

	"github.com/oncemill/oncemill/testcontainers/internal/actor"
)

func TestMain(m *testing.M) { actor.Main(m, roleVariable, play) }

// limit is how long a test waits for what should happen soon, so that one that hangs
// says where.
const limit = 3 * time.Minute

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
