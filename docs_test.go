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
	page, err := os.ReadFile("docs/guarantees.md")
	must(t, err)
	names := regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z]+)`").FindAllSubmatch(page, -1)
	if len(names) < 50 {
		t.Errorf("found only %d tests on the page", len(names))
	}
	for _, name := range names {
		if !strings.Contains(source.String(), "\nfunc "+string(name[1])+"(") {
			t.Errorf("docs/guarantees.md names %s, which does not exist", name[1])
		}
	}
}
