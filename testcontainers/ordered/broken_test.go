package ordered_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/oncemill/oncemill/internal/breach"
	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/lot"
)

// A rule is one that the checker sees broken.
type rule struct {
	name     string
	breaches []breach.Breach
	finds    kind
	test     string // "": brokenTest
	messages int    // how many it takes; 0: brokenMessages
}

// rules are those of the relay and its sink. That a partition has one relay is not among
// them: the locks of rows, and that a key waits behind a row that is locked, keep the order
// without it.
var rules = []rule{
	{"only what the broker has acknowledged is deleted", []breach.Breach{{
		File: "outbox/publish.go",
		Old:  `if passed[i] = err == nil; passed[i] {`,
		New:  `if passed[i] = err == nil || broken("only what the broker has acknowledged is deleted"); passed[i] {`,
	}}, lost, "", 0},

	{"a message has one dedup id", []breach.Breach{{
		File: "consumers/jetstream/sinkencode.go",
		Old:  `e.set(nats.MsgIdHdr, row.DedupID)`,
		New: `e.set(nats.MsgIdHdr, row.DedupID)
	if broken("a message has one dedup id") {
		e.set(nats.MsgIdHdr, nats.NewInbox())
	}`,
	}}, strangeID, "TestARepetitionNeverComesBeforeItsPredecessors", 0},

	// The lock of the partition and those of the rows each see to it.
	{"a row has one relay", []breach.Breach{{
		File: "outbox/partition.go",
		Old:  `) THEN pg_try_advisory_xact_lock(hashtextextended(%s, number)) END`,
		New:  ") THEN pg_try_advisory_xact_lock(hashtextextended(%s, number))` + onlyIf(broken(`a row has one relay`), ` OR true`) + ` END",
	}, {
		File: "outbox/partition.go",
		Old:  "AND parked_at IS NULL\n\t\t\tORDER BY id\n\t\t\tFOR UPDATE SKIP LOCKED`",
		New:  "AND parked_at IS NULL\n\t\t\tORDER BY id\n\t\t\t` + onlyIf(!broken(`a row has one relay`), `FOR UPDATE SKIP LOCKED`)",
	}, {
		File: "outbox/onlyif.go",
		New: `package outbox

func onlyIf(yes bool, part string) string {
	if yes {
		return part
	}
	return ""
}
`,
	}}, again, "", 0},

	{"one message of a key is on its way at a time", []breach.Breach{{
		File: "outbox/order.go",
		Old:  `depth := make(map[string]int)`,
		New: `if broken("one message of a key is on its way at a time") {
		return [][]Row{rows}
	}
	depth := make(map[string]int)`,
	}}, overtaken, "", 0},

	{"nothing passes what was not acknowledged", []breach.Breach{{
		File: "outbox/order.go",
		Old:  `if !passed {`,
		New:  `if !passed && !broken("nothing passes what was not acknowledged") {`,
	}}, overtaken, "", 0},

	{"rows wait behind one that is deferred or parked", []breach.Breach{{
		File: "outbox/waits.go",
		Old:  `behind, due := l.keys[c.key]`,
		New: `behind, due := l.keys[c.key]
	if held && broken("rows wait behind one that is deferred or parked") {
		return nil
	}`,
	}}, overtaken, "", 0},

	{"floors do not pass by what may still be committed", []breach.Breach{{
		File: "outbox/partitionfloors.go",
		Old:  `safe := o.safe() //`,
		New: `safe := o.safe()
	if broken("floors do not pass by what may still be committed") && o.horizon.seen != bottom {
		safe = o.horizon.seen + 1
	} //`,
	}, {
		File: "outbox/partition.go", // or what was passed by would be found after seconds
		Old:  `if now.Sub(o.forgot) >= o.forgetEvery {`,
		New:  `if now.Sub(o.forgot) >= o.forgetEvery || broken("floors do not pass by what may still be committed") && now.Sub(o.forgot) >= time.Second {`,
	}}, overtaken, "", 0},
}

const (
	brokenTest     = "TestRelaysSideBySideKeepTheOrder"
	brokenMessages = 1500
)

// The checker finds nothing in what this build has done, and something in what each build
// has done that has lost a rule, with the same draws.
func TestTheCheckerFindsBrokenBuilds(t *testing.T) {
	t.Parallel()
	whole, err := os.Executable()
	must(t, err)
	lame := breakBuild(t)
	t.Run("none", func(t *testing.T) {
		t.Parallel()
		if out, err := runBroken(t, whole, rule{}); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			want := "a message " + string(r.finds)
			out, err := runBroken(t, lame, r)
			for again := 0; again < 2 && !strings.Contains(string(out), want); again++ { // the schedule is not drawn
				out, err = runBroken(t, lame, r)
			}
			if err == nil || !strings.Contains(string(out), want) {
				t.Errorf("the checker does not find %q: %v\n%s", want, err, out)
			}
		})
	}
}

// runBroken runs a test in a build that has lost a rule.
func runBroken(t *testing.T, build string, r rule) ([]byte, error) {
	t.Helper()
	test, messages := r.test, r.messages
	if test == "" {
		test = brokenTest
	}
	if messages == 0 {
		messages = brokenMessages
	}
	cmd := exec.CommandContext(t.Context(), build, "-test.run=^"+test+"$", "-test.v")
	cmd.Env = append(os.Environ(), breach.Variable+"="+r.name, lot.SeedVariable+"=7", fmt.Sprintf("%s=%d", lot.MessagesVariable, messages),
		"ONCEMILL_TEST_POSTGRES_URL="+testcontainers.Postgres(t).URL)
	return cmd.CombinedOutput()
}

// breakBuild builds this test on an Oncemill that can be told to lose a rule.
func breakBuild(t *testing.T) (program string) {
	t.Helper()
	lame := breach.New(t)
	for _, r := range rules {
		lame.Lose(r.name, r.breaches...)
	}
	return lame.Test()
}
