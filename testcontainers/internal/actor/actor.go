// Package actor runs copies of a test's program as processes beside the test, to
// be killed, frozen and stopped.
//
// A test's TestMain looks for a variable in the environment and, if it is there,
// plays the role in it instead of running tests. What it says on its standard
// output, a line each, the test waits for.
package actor

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A Process plays a role beside the test.
type Process struct {
	t     *testing.T
	name  string
	cmd   *exec.Cmd
	alive io.Closer // its standard input: it ends when that does
	ended chan struct{}
	err   error // how it ended, once that is closed

	mu    sync.Mutex
	lines []string      // what it has said so far
	more  chan struct{} // closed with the next line
	log   bytes.Buffer
}

// limit is how long a test waits for what should happen at once, so that one
// that hangs says where.
const limit = 40 * time.Second

// Start starts a process, which does not outlive the test. The variable holds its
// role, as JSON.
func Start(t *testing.T, name, variable string, role any) *Process {
	t.Helper()
	text, err := json.Marshal(role)
	must(t, err)
	p := &Process{t: t, name: name, cmd: exec.Command(os.Args[0]), ended: make(chan struct{}), more: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), variable+"="+string(text))
	// If the test's process is killed, a process that runs finds its standard
	// input closed. One that is frozen cannot, but then it is a stopped member of
	// an orphaned process group, and those get a SIGHUP.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.Stderr = logOf{p}
	p.alive, err = p.cmd.StdinPipe()
	must(t, err)
	out, err := p.cmd.StdoutPipe()
	must(t, err)
	must(t, p.cmd.Start())
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.heard(lines.Text())
		}
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(p.cleanUp)
	return p
}

// logOf collects a process's standard error.
type logOf struct{ p *Process }

func (l logOf) Write(text []byte) (int, error) {
	l.p.mu.Lock()
	defer l.p.mu.Unlock()
	return l.p.log.Write(text)
}

func (p *Process) heard(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lines = append(p.lines, line)
	close(p.more)
	p.more = make(chan struct{})
}

func (p *Process) cleanUp() {
	_ = p.cmd.Process.Kill() // no error if it has ended
	<-p.ended
	if p.t.Failed() {
		p.t.Logf("%s said %d lines, and logged:\n%s", p.name, len(p.lines), shortened(p.log.String()))
	}
}

func shortened(text string) string {
	const most = 6000
	if len(text) > most {
		return text[:most/2] + "\n...\n" + text[len(text)-most/2:]
	}
	return text
}

// Said returns the lines that the process has said so far and that begin with a
// word, and a channel that is closed when there is another line.
func (p *Process) Said(word string) (lines []string, more <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, line := range p.lines {
		if line == word || strings.HasPrefix(line, word+" ") {
			lines = append(lines, line)
		}
	}
	return lines, p.more
}

// Times returns how often the process has said a word so far.
func (p *Process) Times(word string) int {
	lines, _ := p.Said(word)
	return len(lines)
}

// Await waits until the process has said a word n times, and returns what it
// Said the n-th time.
func (p *Process) Await(word string, n int) string {
	p.t.Helper()
	timeout := time.After(limit)
	for ended := false; ; {
		lines, more := p.Said(word)
		if len(lines) >= n {
			return lines[n-1]
		}
		if ended {
			p.t.Fatalf("%s ended (%v) and has said %q %d times, not %d", p.name, p.err, word, len(lines), n)
		}
		select {
		case <-more:
		case <-p.ended:
			ended = true
		case <-timeout:
			p.t.Fatalf("%s has said %q %d times, not %d", p.name, word, len(lines), n)
		}
	}
}

// Signal sends a signal to the process.
func (p *Process) Signal(s syscall.Signal) {
	p.t.Helper()
	must(p.t, p.cmd.Process.Signal(s))
}

func (p *Process) Wait() error {
	p.t.Helper()
	select {
	case <-p.ended:
		return p.err
	case <-time.After(limit):
		p.t.Fatalf("%s does not end", p.name)
		return nil
	}
}

// Stop ends the process as an operator would, and wants it to go in peace.
func (p *Process) Stop() {
	p.t.Helper()
	p.Await("running", 1) // before that, SIGTERM is like any other end
	p.Signal(syscall.SIGTERM)
	if err := p.Wait(); err != nil {
		p.t.Errorf("%s, told to stop: %v", p.name, err)
	}
}

// Kill ends the process with SIGKILL.
func (p *Process) Kill() {
	p.t.Helper()
	p.Signal(syscall.SIGKILL)
	p.AwaitDeath()
}

// AwaitDeath waits until the process has been killed, by whomever.
func (p *Process) AwaitDeath() {
	p.t.Helper()
	var exit *exec.ExitError
	err := p.Wait()
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		p.t.Fatalf("%s was not killed: %v", p.name, err)
	}
}

// Logged returns how often a process has Logged a text so far.
func (p *Process) Logged(text string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Count(p.log.String(), text)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
