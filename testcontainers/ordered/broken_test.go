package ordered_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/oncemill/oncemill/testcontainers"
)

// brokenVariable names the rule that a broken build has lost.
const brokenVariable = "ONCEMILL_TEST_BROKEN"

// A breach takes a rule away from Oncemill, in a build in which brokenVariable names it.
type breach struct {
	file     string // in the root module
	old, new string
}

// A rule is one that the checker sees broken.
type rule struct {
	name     string
	breaches []breach
	finds    kind
	test     string // "": brokenTest
	messages int    // how many it takes; 0: brokenMessages
}

// rules are those of the relay and its sink. That a partition has one relay is not among
// them: the locks of rows, and that a key waits behind a row that is locked, keep the order
// without it.
var rules = []rule{
	{"only what the broker has acknowledged is deleted", []breach{{"outbox/publish.go",
		`if passed[i] = err == nil; passed[i] {`,
		`if passed[i] = err == nil || broken("only what the broker has acknowledged is deleted"); passed[i] {`,
	}}, lost, "", 0},

	{"a message has one dedup id", []breach{{"consumers/jetstream/sinkencode.go",
		`e.set(nats.MsgIdHdr, row.DedupID)`,
		`e.set(nats.MsgIdHdr, row.DedupID)
	if broken("a message has one dedup id") {
		e.set(nats.MsgIdHdr, nats.NewInbox())
	}`,
	}}, strangeID, "TestARepetitionNeverComesBeforeItsPredecessors", 0},

	// The lock of the partition and those of the rows each see to it.
	{"a row has one relay", []breach{{"outbox/partition.go",
		`) THEN pg_try_advisory_xact_lock(hashtextextended(%s, number)) END`,
		") THEN pg_try_advisory_xact_lock(hashtextextended(%s, number))` + onlyIf(broken(`a row has one relay`), ` OR true`) + ` END",
	}, {"outbox/partition.go",
		"AND parked_at IS NULL\n\t\t\tORDER BY id\n\t\t\tFOR UPDATE SKIP LOCKED`",
		"AND parked_at IS NULL\n\t\t\tORDER BY id\n\t\t\t` + onlyIf(!broken(`a row has one relay`), `FOR UPDATE SKIP LOCKED`)",
	}}, again, "", 0},

	{"one message of a key is on its way at a time", []breach{{"outbox/order.go",
		`depth := make(map[string]int)`,
		`if broken("one message of a key is on its way at a time") {
		return [][]Row{rows}
	}
	depth := make(map[string]int)`,
	}}, overtaken, "", 0},

	{"nothing passes what was not acknowledged", []breach{{"outbox/order.go",
		`if !passed {`,
		`if !passed && !broken("nothing passes what was not acknowledged") {`,
	}}, overtaken, "", 0},

	{"rows wait behind one that is deferred or parked", []breach{{"outbox/waits.go",
		`behind, due := l.keys[c.key]`,
		`behind, due := l.keys[c.key]
	if held && broken("rows wait behind one that is deferred or parked") {
		return nil
	}`,
	}}, overtaken, "", 0},

	{"floors do not pass by what may still be committed", []breach{{"outbox/partitionfloors.go",
		`safe := o.safe() //`,
		`safe := o.safe()
	if broken("floors do not pass by what may still be committed") && o.horizon.seen != bottom {
		safe = o.horizon.seen + 1
	} //`,
	}, {"outbox/partition.go", // or what was passed by would be found after seconds
		`if now.Sub(o.forgot) >= o.forgetEvery {`,
		`if now.Sub(o.forgot) >= o.forgetEvery || broken("floors do not pass by what may still be committed") && now.Sub(o.forgot) >= time.Second {`,
	}}, overtaken, "", 0},
}

// brokenSource is added to each package that has a breach.
const brokenSource = `package %s

import "os"

func broken(rule string) bool { return os.Getenv("` + brokenVariable + `") == rule }

func onlyIf(yes bool, part string) string {
	if yes {
		return part
	}
	return ""
}
`

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
	cmd.Env = append(os.Environ(), brokenVariable+"="+r.name, seedVariable+"=7", fmt.Sprintf("%s=%d", messagesVariable, messages),
		"ONCEMILL_TEST_POSTGRES_URL="+testcontainers.Postgres(t).URL)
	return cmd.CombinedOutput()
}

// breakBuild builds this test on an Oncemill that can be told to lose a rule. The sources
// are replaced for the compiler alone.
func breakBuild(t *testing.T) (program string) {
	t.Helper()
	root, err := filepath.Abs("../..")
	must(t, err)
	dir := t.TempDir()
	replace := make(map[string]string)
	put := func(name, text string) {
		file := filepath.Join(dir, strings.ReplaceAll(name, "/", "_"))
		must(t, os.WriteFile(file, []byte(text), 0o600))
		replace[filepath.Join(root, name)] = file
	}
	for name, text := range breached(t, root) {
		put(name, text)
		pkg := filepath.Dir(name)
		put(pkg+"/broken.go", fmt.Sprintf(brokenSource, filepath.Base(pkg)))
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600))
	program = filepath.Join(dir, "broken.test")
	out, err := exec.CommandContext(t.Context(), "go", "test", "-c", "-overlay="+filepath.Join(dir, "overlay.json"), "-o", program, ".").CombinedOutput()
	if err != nil {
		t.Fatalf("the breaches do not build, so they are to be written anew: %v\n%s", err, out)
	}
	return program
}

// breached returns the sources that have breaches.
func breached(t *testing.T, root string) map[string]string {
	t.Helper()
	texts := make(map[string]string)
	for _, r := range rules {
		for _, b := range r.breaches {
			text, ok := texts[b.file]
			if !ok {
				read, err := os.ReadFile(filepath.Join(root, b.file))
				must(t, err)
				text = string(read)
			}
			if n := strings.Count(text, b.old); n != 1 {
				t.Fatalf("%s has this %d times, not once, so the breach of the rule that %s is to be written anew:\n%s", b.file, n, r.name, b.old)
			}
			texts[b.file] = strings.Replace(text, b.old, b.new, 1)
		}
	}
	return texts
}
