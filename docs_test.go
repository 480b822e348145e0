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
	for _, path := range []string{"docs/guarantees.md", "docs/effects.md"} {
		wantTests(t, path, source.String())
	}
}

// wantTests wants the tests to exist that a page names.
func wantTests(t *testing.T, path, source string) {
	page, err := os.ReadFile(path)
	must(t, err)
	names := regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z0-9]+)`").FindAllSubmatch(page, -1)
	if len(names) < 40 {
		t.Errorf("found only %d tests on %s", len(names), path)
	}
	for _, name := range names {
		if !strings.Contains(source, "\nfunc "+string(name[1])+"(") {
			t.Errorf("%s names %s, which does not exist", path, name[1])
		}
	}
}
