// Package breach builds a test or a program once more on an Oncemill that can be told to
// lose a rule, to see whether the checker in it finds out.
package breach

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Variable names the rule that a broken build has lost. Processes inherit it from those
// that start them.
const Variable = "ONCEMILL_TEST_BROKEN"

// A Breach takes a rule away from Oncemill, in a build in which Variable names it: the
// new text asks broken({rule}). In all texts, {rule} stands for the rule's name as a
// string literal.
type Breach struct {
	File     string // below the root module's directory
	Old, New string // Old is there once. "": the file is none of Oncemill's, and New is all of it
}

// A Build is of a test or a program, with all rules that it can be told to lose.
type Build struct {
	t     *testing.T
	root  string            // the root module's directory
	files map[string]string // what differs from it, by name
}

// New returns a build that loses nothing. The current directory, which is the test's, has
// to be the root module's or below.
func New(t *testing.T) *Build {
	t.Helper()
	return &Build{t, rootOf(t), make(map[string]string)}
}

// rootOf finds the root module.
func rootOf(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	must(t, err)
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(mod), "module github.com/oncemill/oncemill\n") {
			return dir
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	t.Fatal("the root module is in none of the directories above this one")
	return ""
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
		fill := func(text string) string { return strings.ReplaceAll(text, "{rule}", strconv.Quote(rule)) }
		if br.Old == "" {
			b.files[br.File] = fill(br.New)
			continue
		}
		text := b.text(br.File)
		if n := strings.Count(text, br.Old); n != 1 {
			b.t.Fatalf("%s has this %d times, not once, so the breach of the rule that %s is to be written anew:\n%s", br.File, n, rule, br.Old)
		}
		b.files[br.File] = strings.Replace(text, br.Old, fill(br.New), 1)
		b.files[path.Join(path.Dir(br.File), "broken.go")] = fmt.Sprintf(source, b.packageOf(br.File))
	}
}

// text returns what a file has by now.
func (b *Build) text(file string) string {
	b.t.Helper()
	if text, ok := b.files[file]; ok {
		return text
	}
	text, err := os.ReadFile(filepath.Join(b.root, file))
	must(b.t, err)
	return string(text)
}

func (b *Build) packageOf(file string) string {
	b.t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, b.text(file), parser.PackageClauseOnly)
	must(b.t, err)
	return f.Name.Name
}

// Test builds the test of the current directory, and returns its file.
func (b *Build) Test() string {
	b.t.Helper()
	return b.build("test", "-c")
}

// Program builds the program of the current directory, and returns its file.
func (b *Build) Program() string {
	b.t.Helper()
	return b.build("build")
}

// build runs the go command. The sources are replaced for the compiler alone.
func (b *Build) build(command ...string) string {
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
	built := filepath.Join(dir, "broken")
	args := append(command, "-overlay="+filepath.Join(dir, "overlay.json"), "-o", built, ".")
	out, err := exec.CommandContext(t.Context(), "go", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("the breaches do not build, so they are to be written anew: %v\n%s", err, out)
	}
	return built
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
