package effects_test

import (
	"context"
	"testing"
	"time"

	"github.com/oncemill/oncemill/testcontainers/internal/actor"
)

func TestMain(m *testing.M) { actor.Main(m, roleVariable, play) }

// limit is how long a test waits for what should happen soon, so that one that hangs
// says where.
const limit = 60 * time.Second

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
		time.Sleep(10 * time.Millisecond)
	}
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return ctx
}

// start starts a process that plays a role.
func start(t *testing.T, r role) *actor.Process {
	t.Helper()
	return actor.Start(t, r.Name, roleVariable, r)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
