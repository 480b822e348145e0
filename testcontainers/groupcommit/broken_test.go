package groupcommit_test

import (
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
	finds    string // among the checker's anomalies: one of these, with | in between
	test     string // "": TestFaults
}

// rules are those of group commit.
var rules = []rule{
	{"claims of messages that did not run are deleted", breach.ClaimsOfDropped, "its claim has no effect", ""},

	{"a batch with a message that failed is rolled back", []breach.Breach{{
		File: "batchfail.go",
		Old:  `func (b *batch) turnFailed(m *member, err error) {`,
		New: `func (b *batch) turnFailed(m *member, err error) {
	if broken("a batch with a message that failed is rolled back") {
		_ = b.pending.flush(b.ctx)
		_ = b.t.commit(b.ctx)
	}`,
	}}, "its claim has no effect", ""},

	{"success is told after COMMIT was answered", []breach.Breach{{
		File: "batchrun.go",
		Old:  `if err := b.t.commit(b.ctx); err != nil {`,
		New: `if broken("success is told after COMMIT was answered") {
		for _, m := range b.ran {
			b.tell(m, told{})
		}
	}
	if err := b.t.commit(b.ctx); err != nil {`,
	}}, "it was acknowledged and has no claim", ""},

	{"keys are claimed in order", breach.UnsortedBatch, "two claims have deadlocked", "TestTheSameMessagesTwice"},

	{"what a rolled back run has published is forgotten", []breach.Breach{{
		File: "batchfail.go",
		Old:  `func (b *batch) turnFailed(m *member, err error) {`,
		New: `func (b *batch) turnFailed(m *member, err error) {
	if broken("what a rolled back run has published is forgotten") {
		keptLate.Store(b.late)
	}`,
	}, {
		File: "batchrun.go",
		Old:  `func (b *batch) turn(m *member) error {`,
		New: `func (b *batch) turn(m *member) error {
	if kept := keptLate.Swap(nil); kept != nil && len(b.ran) == 0 {
		b.late = kept
	}`,
	}, {
		File: "keptlate.go",
		New: `package oncemill

import (
	"sync/atomic"

	"github.com/oncemill/oncemill/internal/txn"
)

var keptLate atomic.Pointer[txn.Late]
`,
	}}, "is in the outbox 2 times|which is not in effect", ""},

	{"duplicates do not run", []breach.Breach{{
		File: "batchsql.go",
		Old:  `if n < len(sorted) {`,
		New:  `if n < len(sorted) && !broken("duplicates do not run") {`,
	}}, "it has 2 effects", ""},

	{"a transaction is lent for one turn", []breach.Breach{{
		File: "tx.go",
		Old: `	s.mu.Lock()
	s.ended = true`,
		New: `	s.mu.Lock()
	s.ended = !broken("a transaction is lent for one turn")`,
	}}, "can use what an earlier run was lent", ""},

	{"what a handler sets does not reach others", []breach.Breach{{
		File: "share.go",
		Old:  `func (s *share) check(query string) error {`,
		New: `func (s *share) check(query string) error {
	if broken("what a handler sets does not reach others") {
		return nil
	}`,
	}}, "under another's setting|its claim has no effect", ""},

	{"each run has its own copy of the message", []breach.Breach{{
		File: "middleware/identity.go",
		Old:  `own.Payload = append(message.Payload(nil), msg.Payload...)`,
		New: `if own.Payload = msg.Payload; !broken("each run has its own copy of the message") {
		own.Payload = append(message.Payload(nil), msg.Payload...)
	}`,
	}}, "finds \"xxx", ""},
}

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
	cmd.Env = append(os.Environ(), breach.Variable+"="+broken, lot.SeedVariable+"=7", lot.MessagesVariable+"="+messages,
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
