package groupcommit_test

import (
	"encoding/json"
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
	finds    string // among the checker's anomalies: one of these, with | in between
	test     string // "": TestFaults
}

// rules are those of group commit.
var rules = []rule{
	{"claims of messages that did not run are deleted", []breach{{"batchsql.go",
		`if len(b.dropped) == 0 {`,
		`if len(b.dropped) == 0 || broken("claims of messages that did not run are deleted") {`,
	}}, "its claim has no effect", ""},

	{"a batch with a message that failed is rolled back", []breach{{"batchfail.go",
		`func (b *batch) turnFailed(m *member, err error) {`,
		`func (b *batch) turnFailed(m *member, err error) {
	if broken("a batch with a message that failed is rolled back") {
		_ = b.pending.flush(b.ctx)
		_ = b.t.commit(b.ctx)
	}`,
	}}, "its claim has no effect", ""},

	{"success is told after COMMIT was answered", []breach{{"batchrun.go",
		`if err := b.t.commit(b.ctx); err != nil {`,
		`if broken("success is told after COMMIT was answered") {
		for _, m := range b.ran {
			b.tell(m, told{})
		}
	}
	if err := b.t.commit(b.ctx); err != nil {`,
	}}, "it was acknowledged and has no claim", ""},

	{"keys are claimed in order", []breach{{"batchsql.go",
		`strings.Compare(m.d.stored, n.d.stored)`,
		`inOrder(m.d.stored, n.d.stored)`,
	}}, "two claims have deadlocked", "TestTheSameMessagesTwice"},

	{"what a rolled back run has published is forgotten", []breach{{"batchfail.go",
		`func (b *batch) turnFailed(m *member, err error) {`,
		`func (b *batch) turnFailed(m *member, err error) {
	if broken("what a rolled back run has published is forgotten") {
		keptLate.Store(b.late)
	}`,
	}, {"batchrun.go",
		`func (b *batch) turn(m *member) error {`,
		`func (b *batch) turn(m *member) error {
	if kept := keptLate.Swap(nil); kept != nil && len(b.ran) == 0 {
		b.late = kept
	}`,
	}}, "is in the outbox 2 times|which is not in effect", ""},

	{"duplicates do not run", []breach{{"batchsql.go",
		`if n < len(sorted) {`,
		`if n < len(sorted) && !broken("duplicates do not run") {`,
	}}, "it has 2 effects", ""},

	{"a transaction is lent for one turn", []breach{{"tx.go",
		`	s.mu.Lock()
	s.ended = true`,
		`	s.mu.Lock()
	s.ended = !broken("a transaction is lent for one turn")`,
	}}, "can use what an earlier run was lent", ""},

	{"what a handler sets does not reach others", []breach{{"share.go",
		`func (s *share) check(query string) error {`,
		`func (s *share) check(query string) error {
	if broken("what a handler sets does not reach others") {
		return nil
	}`,
	}}, "under another's setting|its claim has no effect", ""},

	{"each run has its own copy of the message", []breach{{"middleware/identity.go",
		`own.Payload = append(message.Payload(nil), msg.Payload...)`,
		`if own.Payload = msg.Payload; !broken("each run has its own copy of the message") {
		own.Payload = append(message.Payload(nil), msg.Payload...)
	}`,
	}}, "finds \"xxx", ""},
}

// brokenSource is added to each package that has a breach.
const brokenSource = `
import "os"

func broken(rule string) bool { return os.Getenv("` + brokenVariable + `") == rule }
`

// brokenRootSource is added to the package oncemill besides.
const brokenRootSource = `package oncemill

import (
	"strings"
	"sync/atomic"

	"github.com/oncemill/oncemill/internal/txn"
)

var keptLate atomic.Pointer[txn.Late]

func inOrder(a, b string) int {
	if broken("keys are claimed in order") {
		return 0
	}
	return strings.Compare(a, b)
}
`

// The checker finds nothing in what this build has done, and something in what each build
// has done that has lost a rule, with the same draws.
func TestTheCheckerFindsBrokenBuilds(t *testing.T) {
	t.Parallel()
	whole, err := os.Executable()
	must(t, err)
	lame := breakBuild(t)
	t.Run("none", func(t *testing.T) {
		t.Parallel()
		if out, err := runTest(t, whole, "", ""); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			out, err := runTest(t, lame, r.test, r.name)
			for again := 0; err == nil && again < 2; again++ { // the schedule is not drawn
				out, err = runTest(t, lame, r.test, r.name)
			}
			if err == nil {
				t.Fatalf("the checker finds nothing:\n%s", out)
			}
			for _, want := range strings.Split(r.finds, "|") {
				if strings.Contains(string(out), want) {
					return
				}
			}
			t.Errorf("the checker does not find %q:\n%s", r.finds, out)
		})
	}
}

// runTest runs a test in a build.
func runTest(t *testing.T, build, test, broken string) ([]byte, error) {
	t.Helper()
	messages := "8000" // for two batches to meet that have keys in common
	if test == "" {
		test, messages = "TestFaults", "900"
	}
	cmd := exec.CommandContext(t.Context(), build, "-test.run=^"+test+"$/^batch=[^0]", "-test.v")
	cmd.Env = append(os.Environ(), brokenVariable+"="+broken, seedVariable+"=7", messagesVariable+"="+messages,
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
	}
	put("brokenroot.go", brokenRootSource)
	put("broken.go", "package oncemill\n"+brokenSource)
	put("middleware/broken.go", "package middleware\n"+brokenSource)
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
