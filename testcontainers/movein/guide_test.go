package movein_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/oncemill/oncemill/internal/testenv"
)

const guide = "../../docs/moving-in.md"

// A block is code in the guide. The comment before it says what it is called, and for Go
// in which file it is.
type block struct{ name, language, text string }

var blocks = sync.OnceValues(func() (all []block, err error) {
	page, err := os.ReadFile(guide)
	if err != nil {
		return nil, err
	}
	if n := len(blockEnd.FindAll(page, -1)); n == 0 || n != len(blockPattern.FindAll(page, -1)) {
		return nil, errors.New("not every block of " + guide + " has a comment with its name before it")
	}
	for _, found := range blockPattern.FindAllSubmatch(page, -1) {
		text := strings.ReplaceAll("\n"+string(found[4]), "\n"+string(found[1]), "\n") // in lists it is indented
		all = append(all, block{string(found[2]), string(found[3]), text[1:]})
	}
	return all, nil
})

var (
	blockPattern = regexp.MustCompile("(?ms)^( *)<!-- ([^\n]*) -->\n *```(\\w+)\n(.*?)\n *```$")
	blockEnd     = regexp.MustCompile("(?m)^ *```$")
)

// fromGuide returns a block of the guide that is no Go.
func fromGuide(t *testing.T, name string) string {
	t.Helper()
	all, err := blocks()
	must(t, err)
	for _, b := range all {
		if b.name == name {
			return b.text
		}
	}
	t.Fatalf("%s has no block %q", guide, name)
	return ""
}

// What the guide shows in Go, and for sqlc, is in the files that it names, which are
// compiled and run by this folder's tests. Files may indent it otherwise.
func TestWhatTheGuideShowsOfFilesIsInThem(t *testing.T) {
	all, err := blocks()
	must(t, err)
	shown := 0
	for _, b := range all {
		if !strings.HasPrefix(b.name, "testcontainers/movein/") {
			continue
		}
		file, err := os.ReadFile("../../" + b.name)
		must(t, err)
		if !strings.Contains(unindented(string(file)), unindented(b.text)) {
			t.Errorf("%s does not have what the guide shows of it:\n%s", b.name, b.text)
		}
		shown++
	}
	if shown < 10 {
		t.Errorf("the guide shows %d files", shown)
	}
	for _, b := range all {
		if b.language == "go" && !strings.HasPrefix(b.name, "testcontainers/movein/") {
			t.Errorf("the guide has Go code of no file: %s", b.name)
		}
	}
}

func unindented(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		lines[i] = strings.TrimSpace(line)
	}
	return "\n" + strings.Join(lines, "\n") + "\n"
}

// The SQL and the commands of the guide are each used by a test.
func TestTheGuidesSQLAndCommandsAreUsedByTests(t *testing.T) {
	all, err := blocks()
	must(t, err)
	files, err := filepath.Glob("*_test.go")
	must(t, err)
	var source bytes.Buffer
	for _, file := range files {
		text, err := os.ReadFile(file)
		must(t, err)
		source.Write(text)
	}
	for _, b := range all {
		if !strings.HasPrefix(b.name, "testcontainers/movein/") && !strings.Contains(source.String(), `"`+b.name+`"`) {
			t.Errorf("no test uses the guide's block %q", b.name)
		}
	}
}

var programs = struct {
	sync.Mutex
	dir string
}{}

// program returns a folder that has the command oncemill.
func program(t *testing.T) string {
	t.Helper()
	programs.Lock()
	defer programs.Unlock()
	if programs.dir != "" {
		return programs.dir
	}
	dir, err := os.MkdirTemp("", "oncemill-movein-")
	must(t, err)
	if out, err := exec.CommandContext(within(t), "go", "build", "-C", "../..", "-o", dir+"/", "./cmd/oncemill").CombinedOutput(); err != nil {
		t.Fatalf("build oncemill: %v\n%s", err, out)
	}
	programs.dir = dir
	return dir
}

// A shell runs a command of the guide.
type shell struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdout testenv.Log
	stderr testenv.Log
	ended  chan error
}

func (s *site) start(name string) *shell {
	s.t.Helper()
	sh := &shell{t: s.t, ended: make(chan error, 1)}
	sh.cmd = exec.CommandContext(context.Background(), "bash", "-c", "exec "+fromGuide(s.t, name))
	sh.cmd.Env = append(os.Environ(), "PATH="+program(s.t)+":"+os.Getenv("PATH"), "DATABASE_URL="+s.dbURL, "NATS_URL="+s.natsURL)
	sh.cmd.Stdout, sh.cmd.Stderr = &sh.stdout, &sh.stderr
	sh.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(s.t, sh.cmd.Start())
	go func() { sh.ended <- sh.cmd.Wait() }()
	s.t.Cleanup(func() {
		_ = sh.cmd.Process.Kill()
		if s.t.Failed() {
			s.t.Logf("%s:\n%s%s", name, sh.stdout.String(), sh.stderr.String())
		}
	})
	return sh
}

// run runs a command of the guide to its end, and returns what it prints.
func (s *site) run(name string) string {
	s.t.Helper()
	sh := s.start(name)
	sh.wait()
	return sh.stdout.String()
}

func (sh *shell) wait() {
	sh.t.Helper()
	select {
	case err := <-sh.ended:
		if err != nil {
			sh.t.Fatalf("%v\n%s", err, sh.stderr.String())
		}
	case <-within(sh.t).Done():
		sh.t.Fatal("the command does not end")
	}
}

// stop ends it as an operator does, and wants it to go in peace.
func (sh *shell) stop() {
	sh.t.Helper()
	must(sh.t, sh.cmd.Process.Signal(syscall.SIGTERM))
	sh.wait()
}

func (sh *shell) await(words string) {
	sh.t.Helper()
	poll(sh.t, "it logs "+words, func() bool { return strings.Contains(sh.stderr.String(), words) })
}
