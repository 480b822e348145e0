package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// A child is a process that plays a role.
type child struct {
	role   string
	place  int
	cmd    *exec.Cmd
	alive  io.Closer     // its standard input: it ends when that does, and so when this process does
	ended  chan struct{} // closed when it has ended
	mayEnd bool          // to end by itself, without an error, is no misbehaviour
	killed bool
	answer string // the last line that it said, where that is not a fault
}

// An event is a line that a child said, or its end.
type event struct {
	from  *child
	line  string
	ended bool
	err   error // how it ended
}

// spawn starts a process. Its events go to the channel until over is closed; what
// it logs is appended to a file in dir.
func spawn(dir, role string, s setting, events chan<- event, over <-chan struct{}) (*child, error) {
	c, stdout, err := prepare(role, s)
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(logFile(dir, role), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the child has it
	c.cmd.Stderr = log
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	tell := func(e event) {
		select {
		case events <- e:
		case <-over:
		}
	}
	go func() {
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			tell(event{from: c, line: lines.Text()})
		}
		err := c.cmd.Wait()
		close(c.ended)
		tell(event{from: c, ended: true, err: err})
	}()
	return c, nil
}

func prepare(role string, s setting) (c *child, stdout io.Reader, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	text, err := json.Marshal(s)
	if err != nil {
		return nil, nil, err
	}
	c = &child{role: role, place: s.Place, cmd: exec.Command(self, role), ended: make(chan struct{})}
	c.cmd.Env = append(os.Environ(), settingVariable+"="+string(text))
	// A group of its own: Ctrl-C is the conductor's, who stops the others.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if c.alive, err = c.cmd.StdinPipe(); err != nil {
		return nil, nil, err
	}
	stdout, err = c.cmd.StdoutPipe()
	return c, stdout, err
}

// kill is kill -9.
func (c *child) kill() {
	c.killed = true
	_ = c.cmd.Process.Kill() // no error if it has ended
}

// stop asks it to end.
func (c *child) stop() {
	c.mayEnd = true
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
}

func (c *child) hasEnded() bool {
	select {
	case <-c.ended:
		return true
	default:
		return false
	}
}

// misbehaved returns an error if it has ended in a way that it should not.
func (c *child) misbehaved(err error) error {
	switch {
	case c.killed, c.mayEnd && err == nil:
		return nil
	case err == nil:
		return fmt.Errorf("%s ended too early", c.role)
	}
	return fmt.Errorf("%s ended: %w", c.role, err)
}

func logFile(dir, role string) string { return filepath.Join(dir, role+".log") }

// logTail returns the end of every log in dir.
func logTail(dir string) (all string) {
	const most = 2000
	files, _ := filepath.Glob(logFile(dir, "*")) // the pattern is well-formed
	for _, file := range files {
		text, _ := os.ReadFile(file) // it is there, but for whatever is wrong with the disk
		if len(text) > 0 {
			all += fmt.Sprintf("--- the end of %s\n%s\n", filepath.Base(file), text[max(0, len(text)-most):])
		}
	}
	return all
}
