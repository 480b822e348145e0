package oncemill_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The page of guarantees names the tests that show them.
func TestEveryGuaranteeHasItsTest(t *testing.T) {
	t.Parallel()
	var source strings.Builder
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		source.Write(text)
		return err
	})
	must(t, err)
	for path, least := range map[string]int{"docs/guarantees.md": 40, "docs/effects.md": 40, "docs/guard.md": 8, "docs/retention.md": 7, "docs/routing.md": 10, "docs/operating.md": 32, "docs/moving-in.md": 16, "docs/outbox.md": 10} {
		wantTests(t, path, source.String(), least)
	}
}

// wantTests wants the tests to exist that a page names, and that it names some.
func wantTests(t *testing.T, path, source string, least int) {
	page, err := os.ReadFile(path)
	must(t, err)
	names := regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z0-9]+)`").FindAllSubmatch(page, -1)
	if len(names) < least {
		t.Errorf("found only %d tests on %s", len(names), path)
	}
	for _, name := range names {
		if !strings.Contains(source, "\nfunc "+string(name[1])+"(") {
			t.Errorf("%s names %s, which does not exist", path, name[1])
		}
	}
}
