// Package breach builds a test once more on an Oncemill that can be told to lose a rule,
// to see whether the test finds out.
package breach

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

// Variable names the rule that a broken build has lost.
const Variable = "ONCEMILL_TEST_BROKEN"

// A Breach takes a rule away from Oncemill, in a build in which Variable names it: the
// new text asks broken(rule).
type Breach struct {
	File     string // in the root module
	Old, New string
}

// A Build is of the test in the current directory, which is two below the root module.
type Build struct {
	t     *testing.T
	root  string
	files map[string]string // what differs from the root module, by name
}

// New returns a build that loses nothing.
func New(t *testing.T) *Build {
	t.Helper()
	root, err := filepath.Abs("../..")
	must(t, err)
	return &Build{t, root, make(map[string]string)}
}

// source is added to each package that has a breach.
const source = `package %s

import "os"

func broken(rule string) bool { return os.Getenv("` + Variable + `") == rule }
`

// Lose has the build lose a rule when it is told to.
func (b *Build) Lose(rule string, breaches ...Breach) {
	b.t.Helper()
	for _, br := range breaches {
		text, ok := b.files[br.File]
		if !ok {
			read, err := os.ReadFile(filepath.Join(b.root, br.File))
			must(b.t, err)
			text = string(read)
		}
		if n := strings.Count(text, br.Old); n != 1 {
			b.t.Fatalf("%s has this %d times, not once, so the breach of the rule that %s is to be written anew:\n%s", br.File, n, rule, br.Old)
		}
		b.files[br.File] = strings.Replace(text, br.Old, br.New, 1)
		dir := path.Dir(br.File)
		b.files[path.Join(dir, "broken.go")] = fmt.Sprintf(source, path.Base(path.Join("oncemill", dir)))
	}
}

// Add adds a file to the root module, for what breaches need.
func (b *Build) Add(file, text string) { b.files[file] = text }

// Program returns what is built. The sources are replaced for the compiler alone.
func (b *Build) Program() string {
	t := b.t
	t.Helper()
	dir := t.TempDir()
	replace := make(map[string]string)
	for name, text := range b.files {
		file := filepath.Join(dir, strings.ReplaceAll(name, "/", "_"))
		must(t, os.WriteFile(file, []byte(text), 0o600))
		replace[filepath.Join(b.root, name)] = file
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600))
	program := filepath.Join(dir, "broken.test")
	out, err := exec.CommandContext(t.Context(), "go", "test", "-c", "-overlay="+filepath.Join(dir, "overlay.json"), "-o", program, ".").CombinedOutput()
	if err != nil {
		t.Fatalf("the breaches do not build, so they are to be written anew: %v\n%s", err, out)
	}
	return program
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
