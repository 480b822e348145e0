package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// A child is a process that plays a role.
type child struct {
	role  string
	cmd   *exec.Cmd
	stdin io.Closer // closing it ends the child, and so does our own end
	log   *os.File
	ended chan struct{} // closed when it has ended
	err   error         // then, how
}

// spawn starts a process in a role. hear gets each line of its standard output;
// what it logs goes to a file in dir.
func spawn(dir, role string, s setting, hear func(line string)) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	c := &child{role: role, cmd: exec.Command(self, role), ended: make(chan struct{})}
	c.cmd.Env = append(os.Environ(), settingVariable+"="+string(text))
	if c.log, err = os.OpenFile(filepath.Join(dir, role+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return nil, err
	}
	c.cmd.Stderr = c.log
	stdin, err := c.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	c.stdin = stdin
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(c.ended)
		defer c.log.Close()
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			hear(lines.Text())
		}
		c.err = c.cmd.Wait()
	}()
	return c, nil
}

// kill is kill -9.
func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	<-c.ended
}

// tail returns the end of the log of each role, for when something has failed.
func tail(dir string) string {
	var all bytes.Buffer
	files, _ := filepath.Glob(filepath.Join(dir, "*.log"))
	for _, file := range files {
		text, _ := os.ReadFile(file)
		fmt.Fprintf(&all, "--- the end of %s\n%s\n", filepath.Base(file), text[max(0, len(text)-2000):])
	}
	return all.String()
}
