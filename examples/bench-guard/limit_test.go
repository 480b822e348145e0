package main_test

import (
	"os"
	"strings"
	"testing"

	main "github.com/oncemill/oncemill/examples/bench-guard"
)

// What the limit runs is what the guard runs.
func TestTheLimitRunsTheGuardsStatement(t *testing.T) {
	t.Parallel()
	source, err := os.ReadFile("../../group.go")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(source), "const groupSQL = `")
	statement, _, found := strings.Cut(after, "`")
	if !found || strings.ReplaceAll(statement, "{schema}", "oncemill") != main.LimitSQL {
		t.Error("group.go has another statement: copy it to limit.go")
	}
}
