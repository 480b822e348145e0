package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/oncemill/oncemill/internal/breach"
)

// crashVariable is "all" for every rule to be broken on every seed. Else each is broken on
// one of them.
const crashVariable = "ONCEMILL_TEST_CRASH"

const (
	// seconds is how long a run takes in which there is nothing to be found, and after which
	// time whatever there is must have been.
	seconds = 60

	// fewSeconds are enough for what can be found only when everything is worked off.
	fewSeconds = 20

	// grace is what else a run takes: to start the servers, and to check at the end.
	grace = 2 * time.Minute

	// rate is what a machine with two cores keeps up with.
	rate = 300
)

// seeds are those on which this build is clean and broken ones are found out.
var seeds = []int{7, 8, 9}

// The checker finds nothing in what this build does, and something in what it does without
// one of the rules, on the same seeds.
func TestTheCrashSuiteFindsBrokenBuilds(t *testing.T) {
	if testing.Short() {
		t.Skip("starts servers: make test-crash")
	}
	program := breakBuild(t)
	for _, seed := range seeds {
		t.Run("none on seed "+strconv.Itoa(seed), func(t *testing.T) { findNothing(t, program, seed) })
	}
	for i, r := range rules {
		if os.Getenv(crashVariable) != "all" {
			t.Run(r.name, func(t *testing.T) { findOutOnAny(t, program, r, i) })
			continue
		}
		for _, seed := range seeds {
			t.Run(r.name+" on seed "+strconv.Itoa(seed), func(t *testing.T) {
				if wrong := findOut(t, program, r, seed); wrong != "" {
					t.Error(wrong)
				}
			})
		}
	}
}

// breakBuild builds this program on an Oncemill that can be told to lose a rule.
func breakBuild(t *testing.T) (program string) {
	t.Helper()
	lame := breach.New(t)
	for _, r := range rules {
		lame.Lose(r.name, r.breaches...)
	}
	return lame.Program()
}

func findNothing(t *testing.T, program string, seed int) {
	if out, code := crash(t, program, rule{}, seconds, seed); code != 0 {
		t.Errorf("it exits with %d instead of 0, though no rule is broken:\n%s", code, shortened(out))
	}
}

// findOutOnAny takes one seed, and the next one where a machine that is busy with other
// things has not let the fault meet what it should.
func findOutOnAny(t *testing.T, program string, r rule, first int) {
	var wrong string
	for i := range seeds {
		if wrong = findOut(t, program, r, seeds[(first+i)%len(seeds)]); wrong == "" {
			return
		}
		t.Log(wrong)
	}
	t.Error("it was not found out on any seed")
}

// findOut returns what is wrong if the program does not find out that it lacks a rule.
func findOut(t *testing.T, program string, r rule, seed int) (wrong string) {
	begun, limit := time.Now(), seconds
	if r.atTheEnd {
		limit = fewSeconds
	}
	out, code := crash(t, program, r, limit, seed)
	took := time.Since(begun).Round(100 * time.Millisecond)
	found := kindsOf(out)
	if code != 1 || !slices.ContainsFunc(found, func(kind string) bool { return slices.Contains(r.finds, kind) }) {
		return fmt.Sprintf("on seed %d it exits with %d after %v and has found %q: want 1, and one of %q\n%s", seed, code, took, found, r.finds, shortened(out))
	}
	if took > seconds*time.Second {
		return fmt.Sprintf("on seed %d it is found out after %v: want %d s at most", seed, took, seconds)
	}
	t.Logf("found out on seed %d after %v: %s", seed, took, strings.Join(found, ", "))
	return ""
}

// crash runs the program without a rule until it finds something, and returns what it says
// and its exit code.
func crash(t *testing.T, program string, broken rule, seconds, seed int) (out string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(seconds)*time.Second+grace)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "-until-anomaly", "-rate", strconv.Itoa(cmp.Or(broken.rate, rate)),
		"-seconds", strconv.Itoa(seconds), "-seed", strconv.Itoa(seed))
	cmd.Env = append(os.Environ(), breach.Variable+"="+broken.name)
	cmd.WaitDelay = 5 * time.Second
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	err := cmd.Run()
	var exited *exec.ExitError
	if err != nil && !errors.As(err, &exited) || ctx.Err() != nil {
		t.Fatalf("%v\n%s", errors.Join(err, ctx.Err()), shortened(said.String()))
	}
	return said.String(), cmd.ProcessState.ExitCode()
}

// kindsOf returns the classes and kinds of the anomalies that the program tells of, each once.
func kindsOf(out string) (kinds []string) {
	for line := range strings.Lines(out) {
		rest, ok := strings.CutPrefix(line, "anomaly: ")
		kind, _, _ := strings.Cut(rest, ":")
		if ok && !slices.Contains(kinds, kind) {
			kinds = append(kinds, kind)
		}
	}
	return kinds
}

// shortened returns the end of what the program has said.
func shortened(out string) string {
	const most = 20_000
	if len(out) > most {
		return "..." + out[len(out)-most:]
	}
	return out
}
