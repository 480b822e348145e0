package guard_test

import (
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/guard"
	"github.com/oncemill/oncemill/internal/testenv"
)

// The shell commands of docs/guard.md run as they stand there.
func TestTheCommandsOfTheDocumentation(t *testing.T) {
	t.Parallel()
	for _, program := range []string{"bash", "curl"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("install %s: the commands of docs/guard.md need it", program)
		}
	}
	page, err := os.ReadFile("../docs/guard.md")
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	script.WriteString("set -euo pipefail\n")
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllSubmatch(page, -1) {
		// Each answer ends a line, and an error of the server is one of the script.
		script.WriteString(strings.ReplaceAll(string(block[1]), "curl -s ", "curl -sS --fail-with-body -w '\\n' "))
	}
	server, audit := documented(t)
	command := exec.CommandContext(t.Context(), "bash", "-c", script.String())
	command.Env = append(os.Environ(), "GUARD="+server, "AUDIT="+audit)
	out, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{
		`{"status":"committed","request_id":"order-8"}`, `{"status":"SKIP","request_id":"order-8","agent_id":null}`,
		`"request_id":"billing-1:charge:customer-2"`, `{"status":"extended","request_id":"order-10","lease_until":`,
		`{"status":"released","request_id":"order-11"}`, `{"status":"failed","request_id":"order-11"}`,
		`{"status":"resolved","request_id":"order-12","verdict":"happened"}`, `"kind":"blocked"`, `"calls_remaining":`, `{"swept":0,`,
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
}

// documented returns the address of a guard as the page has it started, and its audit
// token.
func documented(t *testing.T) (address, audit string) {
	db := testenv.OpenByIndex(t, testenv.PostgresURL(t))
	if err := oncemill.Migrate(t.Context(), db, ""); err != nil {
		t.Fatal(err)
	}
	audit = strings.Repeat("a", 32)
	h := &guard.Handler{Inbox: &oncemill.Inbox{DB: db, ClaimBatch: 64}, AuditToken: audit}
	if err := h.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server.URL, audit
}
