// Package demotest runs a demo in a test of it, and looks what it leaves behind.
package demotest

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A Demo is one run of the program whose directory the test is in.
type Demo struct {
	Stdout, Stderr bytes.Buffer // to be read when it has ended

	t           *testing.T
	binary, tmp string
	cmd         *exec.Cmd
	lines       chan string
	ended       chan struct{}
	err         error
}

// Start builds the program and starts it, with some variables in its environment beside
// those of the test. The test is skipped in short mode.
func Start(t *testing.T, environment []string, args ...string) *Demo {
	t.Helper()
	if testing.Short() {
		t.Skip("starts servers: make test")
	}
	d := &Demo{t: t, binary: Build(t), ended: make(chan struct{})}
	// Not a t.TempDir: root's Postgres runs as a user who cannot enter that.
	var err error
	if d.tmp, err = os.MkdirTemp("", "demo-test-"); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(d.tmp, 0o755); err != nil {
		t.Fatal(err)
	}
	d.cmd = exec.Command(d.binary, args...)
	d.cmd.Env = append(append(os.Environ(), "TMPDIR="+d.tmp), environment...)
	d.cmd.Stderr = &d.Stderr
	stdout, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d.lines = make(chan string, 1000)
	go d.read(stdout)
	t.Cleanup(func() {
		_ = d.cmd.Process.Kill()
		<-d.ended
		os.RemoveAll(d.tmp)
	})
	return d
}

// Build builds the program whose directory the test is in, and returns its path.
func Build(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "demo")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return binary
}

func (d *Demo) read(stdout io.Reader) {
	for lines := bufio.NewScanner(io.TeeReader(stdout, &d.Stdout)); lines.Scan(); {
		d.lines <- lines.Text()
	}
	d.err = d.cmd.Wait()
	close(d.ended)
}

// Await waits for a line with a text in it.
func (d *Demo) Await(text string) {
	d.t.Helper()
	for {
		select {
		case line := <-d.lines:
			if strings.Contains(line, text) {
				return
			}
		case <-d.ended:
			d.t.Fatalf("ended (%v) without having said %q:\n%s", d.err, text, d.Stderr.String())
		}
	}
}

// Signal sends a signal to the conductor.
func (d *Demo) Signal(s os.Signal) {
	d.t.Helper()
	if err := d.cmd.Process.Signal(s); err != nil {
		d.t.Fatal(err)
	}
}

// Wait waits until it has ended, and returns how.
func (d *Demo) Wait() error {
	d.t.Helper()
	select {
	case <-d.ended:
	case <-time.After(3 * time.Minute):
		_ = d.cmd.Process.Signal(syscall.SIGQUIT) // where does it hang?
		<-d.ended
		d.t.Fatalf("it does not end:\n%s", d.Stderr.String())
	}
	return d.err
}

// ExitCode waits until it has ended, and returns its exit status, -1 if it was killed.
func (d *Demo) ExitCode() int {
	d.t.Helper()
	var exit *exec.ExitError
	switch err := d.Wait(); {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	default:
		d.t.Fatal(err)
		return -1
	}
}

// Interrupted starts the program, presses Ctrl-C when it says something, and wants it to end
// all processes and remove all files.
func Interrupted(t *testing.T, when string, args ...string) {
	t.Helper()
	d := Start(t, nil, args...)
	d.Await(when)
	d.Signal(os.Interrupt)
	if code := d.ExitCode(); code != 130 {
		t.Errorf("interrupted: exit status %d, want 130\n%s", code, d.Stderr.String())
	}
	d.LeavesNothing()
}

// Killed starts the program and kills it with SIGKILL when it says something. Nobody can
// clean up after that, but no process may outlive the conductor.
func Killed(t *testing.T, when string, args ...string) {
	t.Helper()
	d := Start(t, nil, args...)
	d.Await(when)
	d.Signal(os.Kill)
	if err := d.Wait(); err == nil {
		t.Error("it was killed, but has ended well")
	}
	d.AwaitGone()
}

// Refused starts the program with arguments that are wrong, and wants it to end with an error
// that says so, and to say nothing else.
func Refused(t *testing.T, want string, args ...string) {
	t.Helper()
	d := Start(t, nil, args...)
	if code := d.ExitCode(); code == 0 || !strings.Contains(d.Stderr.String(), want) || d.Stdout.Len() > 0 {
		t.Errorf("%q: exit status %d, %q and %q", args, code, d.Stdout.String(), d.Stderr.String())
	}
}

// LastLine returns what it said last.
func (d *Demo) LastLine() string {
	lines := strings.Split(strings.TrimSuffix(d.Stdout.String(), "\n"), "\n")
	return lines[len(lines)-1]
}

// AwaitGone waits until none of its processes is left.
func (d *Demo) AwaitGone() {
	d.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); len(d.Processes()) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			d.t.Fatalf("still there: %q", d.Processes())
		}
	}
}

// LeavesNothing checks that a demo which has ended has left no process and no file.
func (d *Demo) LeavesNothing() {
	d.t.Helper()
	for _, line := range d.Processes() {
		d.t.Errorf("left behind: %s", line)
	}
	files, err := filepath.Glob(filepath.Join(d.tmp, "*"))
	if err != nil {
		d.t.Fatal(err)
	}
	for _, file := range files {
		d.t.Errorf("left behind: %s", file)
	}
}

// Processes returns the command lines of the processes that the demo has started,
// and their children, where /proc has them: each is its program or has its
// directory in the arguments.
func (d *Demo) Processes() (lines []string) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		d.t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		line := strings.ReplaceAll(string(text), "\x00", " ")
		if err == nil && (strings.Contains(line, d.binary) || strings.Contains(line, d.tmp)) {
			lines = append(lines, line)
		}
	}
	return lines
}
