package main_test

import (
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/oncemill/oncemill/examples/internal/demotest"
)

var (
	guardedLine = regexp.MustCompile(`^guarded: messages=(\d+) happened=(\d+) failed=(\d+) in_doubt=(\d+)$`)
	crashLine   = regexp.MustCompile(`^crash: seed=7 faults=(\d+) messages=(\d+) effects=(\d+) lost=0 twice=0 unexplained=0$`)
)

// Each message has its effect once, and each child arrives once, while everything fails.
func TestNothingIsLostOrDoubledWhileEverythingFails(t *testing.T) {
	const seconds = 20
	d := demotest.Start(t, nil, "-seconds", strconv.Itoa(seconds), "-seed", "7", "-rate", "200")
	if code := d.ExitCode(); code != 0 {
		t.Fatalf("exit status %d, want 0\n%s\n%s", code, d.Stdout.String(), d.Stderr.String())
	}
	lines := strings.Split(strings.TrimSuffix(d.Stdout.String(), "\n"), "\n")
	guarded, crash := numbers(t, guardedLine, lines[len(lines)-2]), numbers(t, crashLine, lines[len(lines)-1])
	if wanted, happened, failed, inDoubt := guarded[0], guarded[1], guarded[2], guarded[3]; happened == 0 || happened+failed+inDoubt != wanted {
		t.Errorf("of %d guarded effects %d have happened, %d failed and %d are in doubt: want them to add up", wanted, happened, failed, inDoubt)
	}
	faults, messages, effects := crash[0], crash[1], crash[2]
	if faults < seconds/5 {
		t.Errorf("%d faults in %d seconds: want %d at least", faults, seconds, seconds/5)
	}
	if messages == 0 || effects != messages {
		t.Errorf("%d messages have %d effects: want one each", messages, effects)
	}
	d.LeavesNothing()
}

// numbers returns what a pattern finds in a line.
func numbers(t *testing.T, pattern *regexp.Regexp, line string) (all []int) {
	t.Helper()
	found := pattern.FindStringSubmatch(line)
	if found == nil {
		t.Fatalf("a line is %q, want %v", line, pattern)
	}
	for _, text := range found[1:] {
		n, _ := strconv.Atoi(text) // digits
		all = append(all, n)
	}
	return all
}

// Ctrl-C in the middle of the faults ends all processes and servers, and removes all files.
func TestInterrupted(t *testing.T) {
	demotest.Interrupted(t, "fault 2, ", "-seconds", "600", "-rate", "50")
}

// No process outlives the conductor, and be it one that was frozen.
func TestKilled(t *testing.T) { demotest.Killed(t, " frozen: ", "-seconds", "600", "-rate", "50") }

func TestArgumentsThatAreWrong(t *testing.T) {
	t.Parallel()
	for want, args := range map[string][]string{
		"-seconds is 5: must be at least 10": {"-seconds=5"},
		"-rate is 5: must be from 10":        {"-rate=5"},
		`-broker is "fax"`:                   {"-broker=fax"},
		`-profile is "fast": must be one of`: {"-profile=fast"},
		"is no flag":                         {"now"},
	} {
		demotest.Refused(t, want, args...)
	}
}
