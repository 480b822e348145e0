package conditions_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// buildDir holds the program that the tests start.
var buildDir string

func TestMain(m *testing.M) {
	var err error
	if buildDir, err = os.MkdirTemp("", "oncemill-conditions-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		os.RemoveAll(buildDir)
		os.Exit(code)
	}))
}

// program builds the command.
var program = sync.OnceValues(func() (path string, err error) {
	path = filepath.Join(buildDir, "oncemill")
	if out, err := exec.Command("go", "build", "-o", path, "github.com/oncemill/oncemill/cmd/oncemill").CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

const (
	// patience is for what should happen soon, on a busy machine, and endurance for
	// what takes its time.
	patience  = 40 * time.Second
	endurance = 5 * time.Minute
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), endurance)
	t.Cleanup(cancel)
	return ctx
}

// until waits for a state of which there is no signal.
func until(t testing.TB, what string, limit time.Duration, holds func() bool, state ...func() string) {
	t.Helper()
	for end := time.Now().Add(limit); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			for _, s := range state {
				t.Log(s())
			}
			t.Fatalf("not in time: %s", what)
		}
	}
}
