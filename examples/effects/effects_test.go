package main_test

import (
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/oncemill/oncemill/examples/internal/demotest"
)

const few = "150" // messages, with 7 kills and as many lost replies at least

// Each mail is sent once, refused, or in doubt and listed.
func TestEmail(t *testing.T) {
	t.Parallel()
	happened, failed, inDoubt := keepsItsPromise(t, "email",
		"before the claim", "after the claim, before the request", "after the request was written", "after the effect, before the reply",
		"after the reply, before settling", "in the transaction that settles", "after settling, before the ack")
	if happened == 0 || failed == 0 || inDoubt == 0 {
		t.Errorf("%d happened, %d failed and %d are in doubt: want some of each", happened, failed, inDoubt)
	}
}

// Each card is charged once, whatever gets lost.
func TestPayment(t *testing.T) {
	t.Parallel()
	happened, _, _ := keepsItsPromise(t, "payment",
		"before the claim", "after the claim, before the request", "after the request was written",
		"after the reply, before settling", "in the transaction that settles", "after settling, before the ack")
	if want, _ := strconv.Atoi(few); happened != want {
		t.Errorf("%d were charged once, want %d", happened, want)
	}
}

func keepsItsPromise(t *testing.T, kind string, moments ...string) (happened, failed, inDoubt int) {
	d := demotest.Start(t, nil, "-kind", kind, "-messages", few)
	if err := d.Wait(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, d.Stdout.String(), d.Stderr.String())
	}
	line := regexp.MustCompile(`^effects: kind=` + kind + ` messages=` + few + ` happened=(\d+) failed=(\d+) in_doubt=(\d+) twice=0 unexplained=0$`)
	found := line.FindStringSubmatch(d.LastLine())
	if found == nil {
		t.Fatalf("the last line is %q", d.LastLine())
	}
	for i, n := range []*int{&happened, &failed, &inDoubt} {
		*n, _ = strconv.Atoi(found[i+1])
	}
	if want, _ := strconv.Atoi(few); happened+failed+inDoubt != want {
		t.Errorf("%q does not add up", d.LastLine())
	}
	for _, moment := range moments {
		if !strings.Contains(d.Stdout.String(), "killed "+moment+" (") {
			t.Errorf("nobody was killed %s:\n%s", moment, d.Stdout.String())
		}
	}
	d.LeavesNothing()
	return happened, failed, inDoubt
}

// Ctrl-C in the middle of the work ends all processes and removes all files.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"email", "payment"} {
		demotest.Interrupted(t, "killed after the claim", "-kind", kind)
	}
}

// Nobody can clean up after a kill -9, but no process outlives the conductor.
func TestKilled(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"email", "payment"} {
		demotest.Killed(t, "killed after the claim", "-kind", kind)
	}
}

func TestArgumentsThatAreWrong(t *testing.T) {
	t.Parallel()
	for want, args := range map[string][]string{
		"-kind is missing":                 nil,
		`-kind is "fax"`:                   {"-kind=fax"},
		"-messages is 10: must be at leas": {"-kind=email", "-messages=10"},
		"-messages":                        {"-kind=email", "-messages=many"},
		"is no flag":                       {"email"},
	} {
		demotest.Refused(t, want, args...)
	}
}
