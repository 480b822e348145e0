package crew

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// A Child is a process that plays a role.
type Child struct {
	Role   string
	Place  int    // which it is of those in its role; whoever has spawned it may set it
	MayEnd bool   // to end by itself, without an error, is no misbehaviour
	Answer string // the last line that it said, where Crew.Heard did not take it

	cmd    *exec.Cmd
	alive  io.Closer     // its standard input: it ends when that does, and so when this process does
	ended  chan struct{} // closed when it has ended
	stops  bool          // it was asked to end
	killed bool
}

// event is a line that a child said, or its end.
type event struct {
	from  *Child
	line  string
	ended bool
	err   error // how it ended
}

// spawn starts a process. Its events go to the channel until over is closed; what
// it logs is appended to a file.
func (c *Crew) spawn(role string, setting any) (*Child, error) {
	child, stdout, err := c.prepare(role, setting)
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(c.logFile(role), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the child has it
	child.cmd.Stderr = log
	if err := child.cmd.Start(); err != nil {
		return nil, err
	}
	tell := func(e event) {
		select {
		case c.events <- e:
		case <-c.over:
		}
	}
	go func() {
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			tell(event{from: child, line: lines.Text()})
		}
		err := child.cmd.Wait()
		close(child.ended)
		tell(event{from: child, ended: true, err: err})
	}()
	return child, nil
}

func (c *Crew) prepare(role string, setting any) (child *Child, stdout io.Reader, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	text, err := json.Marshal(setting)
	if err != nil {
		return nil, nil, err
	}
	child = &Child{Role: role, cmd: exec.Command(self, role), ended: make(chan struct{})}
	child.cmd.Env = append(os.Environ(), settingVariable+"="+string(text))
	// A group of its own: Ctrl-C is the conductor's, who stops the others.
	child.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if child.alive, err = child.cmd.StdinPipe(); err != nil {
		return nil, nil, err
	}
	stdout, err = child.cmd.StdoutPipe()
	return child, stdout, err
}

// Kill is kill -9.
func (c *Child) Kill() {
	c.killed = true
	_ = c.cmd.Process.Kill() // no error if it has ended
}

// PID is its process id.
func (c *Child) PID() int { return c.cmd.Process.Pid }

// Killed tells whether it was.
func (c *Child) Killed() bool { return c.killed }

// Signal sends it a signal, such as SIGSTOP.
func (c *Child) Signal(s syscall.Signal) { _ = c.cmd.Process.Signal(s) } // no error if it has ended

// Stop asks it to end.
func (c *Child) Stop() {
	c.MayEnd, c.stops = true, true
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
}

func (c *Child) hasEnded() bool {
	select {
	case <-c.ended:
		return true
	default:
		return false
	}
}

// Misbehaved returns an error if it has ended in a way that it should not.
func (c *Child) Misbehaved(err error) error {
	switch {
	case c.killed, c.MayEnd && err == nil:
		return nil
	case c.stops && endedBy(err) == syscall.SIGTERM: // it was about to end, or had just begun
		return nil
	case err == nil:
		return fmt.Errorf("%s ended too early", c.Role)
	}
	return fmt.Errorf("%s ended: %w", c.Role, err)
}

// endedBy returns the signal that has ended a process, -1 if none has.
func endedBy(err error) syscall.Signal {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok {
			return status.Signal()
		}
	}
	return -1
}

func (c *Crew) logFile(role string) string { return filepath.Join(c.dir, role+".log") }

// LogTail returns the end of every log in a crew's directory.
func LogTail(dir string) (all string) {
	const most = 2000
	files, _ := filepath.Glob(filepath.Join(dir, "*.log")) // the pattern is well-formed
	for _, file := range files {
		text, _ := os.ReadFile(file) // it is there, but for whatever is wrong with the disk
		if len(text) > 0 {
			all += fmt.Sprintf("--- the end of %s\n%s\n", filepath.Base(file), text[max(0, len(text)-most):])
		}
	}
	return all
}
