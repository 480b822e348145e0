// Package process runs a server as a child process that tests can kill, freeze
// and start again, and that never outlives the program that started it.
//
// A parent that is killed with SIGKILL cannot stop its children. So a shell
// stands by beside each server, reading from a pipe whose other end only the
// parent holds: the kernel closes it however the parent ends, and the shell then
// ends the server and removes its files. Linux has PR_SET_PDEATHSIG for this,
// but that tells only the server and not the processes it has forked, does not
// remove files, and is tied to the life of an OS thread, which would cost a
// goroutine for as long as the server runs and show up in every leak test.
//
// For the same reason nothing here waits in a goroutine of its own: a process is
// asked whether it has ended when somebody wants to know.
package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// A Command says what to run.
type Command struct {
	Path string   // the program
	Args []string // its arguments, without its name
	Env  []string // its whole environment
	Dir  string   // its working directory; "" means /
	Log  string   // the file that its output is appended to; "" discards it

	// User is whom to run it as. nil means this process's user.
	User *syscall.Credential

	// Quit is the signal that makes the program end at once but tidily. 0
	// means SIGKILL.
	Quit syscall.Signal
}

// A Process runs one program at a time: it can be started, ended and started
// again. Its methods may be called from several goroutines.
type Process struct {
	mu      sync.Mutex
	pid     int                // 0: not running
	status  syscall.WaitStatus // of the program that ended last
	frozen  []int
	standby *exec.Cmd
	orders  io.WriteCloser // what the standby reads
}

// prepared holds every Process that is not closed. If one that nobody refers to
// any more were collected as garbage, its pipe would be closed, and a server that
// is meant to run as long as this process would end before.
var prepared sync.Map

// ErrNotRunning is returned for a signal to a process that has ended.
var ErrNotRunning = errors.New("the process is not running")

// Prepare sets up the guarding of a process that is not started yet. If this
// process ends without having called Close, the program is ended and the
// directory remove is removed; "" means none.
func Prepare(remove string) (*Process, error) {
	p := &Process{standby: exec.Command("/bin/sh", "-c", standby, "sh", remove)}
	p.standby.Dir = "/"
	// A group of its own, so that the terminal's interrupt does not end it.
	p.standby.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var err error
	if p.orders, err = p.standby.StdinPipe(); err != nil {
		return nil, err
	}
	if err := p.standby.Start(); err != nil {
		return nil, err
	}
	prepared.Store(p, nil)
	return p, nil
}

// standby is what the shell beside the server runs. It reads the server's pid,
// and the signal for it, whenever that changes. The children are listed while their parent is stopped,
// and before it ends, for they are nobody's children after that. Without /proc
// they are left to notice by themselves.
const standby = `
pid=
while read -r number name; do pid=$number quit=$name; done
if [ -n "$pid" ] && kill -STOP "$pid"; then
	children=
	for stat in /proc/[0-9]*/stat; do
		read -r child name state parent rest <"$stat" && [ "$parent" = "$pid" ] && children="$children $child"
	done
	kill -"$quit" "$pid"
	kill -CONT "$pid" $children
	tries=0
	while kill -0 "$pid" && [ "$tries" -lt 30 ]; do sleep 0.1; tries=$((tries + 1)); done
	kill -KILL "$pid" $children
fi 2>/dev/null
[ -z "$1" ] || rm -rf -- "$1"
`

// Start starts a program.
func (p *Process) Start(command Command) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running() {
		return errors.New("the process is running already")
	}
	if p.standby == nil {
		return errors.New("the process has been closed")
	}
	pid, err := command.start()
	if err != nil {
		return err
	}
	p.pid, p.status, p.frozen = pid, 0, nil
	quit := command.Quit
	if quit == 0 {
		quit = syscall.SIGKILL
	}
	return p.tell(fmt.Sprintf("%d %d", pid, quit))
}

// Run starts a program and waits until it has ended, or kills it when ctx ends.
// An exit status other than 0 is an error.
func (p *Process) Run(ctx context.Context, command Command) error {
	if err := p.Start(command); err != nil {
		return err
	}
	for !p.Wait(50 * time.Millisecond) {
		if ctx.Err() != nil {
			return errors.Join(context.Cause(ctx), p.Kill())
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.status.Signaled():
		return fmt.Errorf("ended by signal: %v", p.status.Signal())
	case p.status.ExitStatus() != 0:
		return fmt.Errorf("exit status %d", p.status.ExitStatus())
	}
	return nil
}

func (c Command) start() (pid int, err error) {
	files := make([]*os.File, 3)
	if files[0], err = os.Open(os.DevNull); err != nil {
		return 0, err
	}
	defer files[0].Close()
	log := c.Log
	if log == "" {
		log = os.DevNull
	}
	if files[1], err = os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return 0, err
	}
	defer files[1].Close()
	files[2] = files[1]
	dir := c.Dir
	if dir == "" {
		dir = "/"
	}
	child, err := os.StartProcess(c.Path, append([]string{c.Path}, c.Args...), &os.ProcAttr{
		Dir:   dir,
		Env:   c.Env,
		Files: files,
		Sys:   &syscall.SysProcAttr{Setpgid: true, Credential: c.User},
	})
	if err != nil {
		return 0, err
	}
	pid = child.Pid
	return pid, child.Release() // waited for with wait4, which does not block
}

// Running tells whether the program has been started and has not ended.
func (p *Process) Running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.running()
}

func (p *Process) running() bool {
	if p.pid == 0 {
		return false
	}
	pid, err := syscall.Wait4(p.pid, &p.status, syscall.WNOHANG, nil)
	for errors.Is(err, syscall.EINTR) {
		pid, err = syscall.Wait4(p.pid, &p.status, syscall.WNOHANG, nil)
	}
	if pid == 0 && err == nil {
		return true
	}
	p.pid, p.frozen = 0, nil
	_ = p.tell("") // the pid is free for another process from now on
	return false
}

// tell gives the standby the pid that it is to end, or "" for none.
func (p *Process) tell(pid string) error {
	_, err := io.WriteString(p.orders, pid+"\n")
	return err
}

// PID returns the process id, or 0 if the program is not running.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.running() {
		return 0
	}
	return p.pid
}

// Killed tells whether the program has been started, and a SIGKILL has ended it.
func (p *Process) Killed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.running() && p.status.Signaled() && p.status.Signal() == syscall.SIGKILL
}

// Signal sends a signal to the program.
func (p *Process) Signal(signal syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.running() {
		return ErrNotRunning
	}
	return syscall.Kill(p.pid, signal)
}

// Wait waits until the program has ended, and tells whether it has.
func (p *Process) Wait(limit time.Duration) bool {
	deadline := time.Now().Add(limit)
	for pause := time.Millisecond; p.Running(); pause = min(2*pause, 20*time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(pause)
	}
	return true
}

// ErrEnded says that a program has ended which was to become ready.
var ErrEnded = errors.New("the server ended")

// Ready waits until the program answers, with that long between one question and the next.
func (p *Process) Ready(ctx context.Context, pause time.Duration, answers func(context.Context) error) error {
	for {
		if !p.Running() {
			return ErrEnded
		}
		err := answers(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w, last: %w", context.Cause(ctx), err)
		case <-time.After(pause):
		}
	}
}

// Stop ends the program with SIGTERM, which it may take a while to follow, and with
// SIGKILL when the limit is over. It does nothing if the program has ended.
func (p *Process) Stop(limit time.Duration) error {
	_ = p.Thaw() // a frozen process cannot shut down
	err := p.Signal(syscall.SIGTERM)
	if errors.Is(err, ErrNotRunning) {
		return nil
	}
	if err == nil && p.Wait(limit) {
		return nil
	}
	return errors.Join(err, p.Kill())
}

// KillCommand returns a command that kills the process in a pid file with SIGKILL.
func KillCommand(pidFile string) []string {
	// Soon after another kill the file may still name the process before.
	const script = `for try in 1 2 3 4 5 6 7 8 9 10; do kill -KILL "$(cat "$1")" && exit; sleep 0.2; done 2>/dev/null; exit 1`
	return []string{"/bin/sh", "-c", script, "sh", pidFile}
}

// Kill ends the program and the processes that it has forked with SIGKILL, and
// returns when all of them are gone. It does nothing if the program has ended.
func (p *Process) Kill() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.running() {
		return nil
	}
	// Stopped first, so that it forks no more while its children are listed.
	pids, err := freeze(p.pid)
	for _, pid := range pids {
		if e := syscall.Kill(pid, syscall.SIGKILL); e != nil && !errors.Is(e, syscall.ESRCH) {
			err = errors.Join(err, fmt.Errorf("kill process %d: %w", pid, e))
		}
	}
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if pid == p.pid {
			for p.running() {
				time.Sleep(time.Millisecond)
			}
			continue
		}
		for alive(pid) {
			time.Sleep(time.Millisecond)
		}
	}
	return nil
}

// Freeze stops the program and the processes that it has forked with SIGSTOP:
// their connections stay open, and nothing answers. Thaw lets them go on.
func (p *Process) Freeze() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.running() {
		return ErrNotRunning
	}
	pids, err := freeze(p.pid)
	p.frozen = pids
	return err
}

// Thaw lets a frozen program go on.
func (p *Process) Thaw() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.running() {
		return ErrNotRunning
	}
	var err error
	for i := len(p.frozen) - 1; i >= 0; i-- { // the parent, which is first, last
		if e := syscall.Kill(p.frozen[i], syscall.SIGCONT); e != nil && !errors.Is(e, syscall.ESRCH) {
			err = errors.Join(err, e)
		}
	}
	p.frozen = nil
	return err
}

// freeze stops a process and its children, and returns the pids of all that it
// has stopped, the parent first.
func freeze(parent int) ([]int, error) {
	pids := []int{parent}
	if err := stop(parent); err != nil {
		return pids, err
	}
	kin, err := children(parent)
	if err != nil {
		return pids, err
	}
	for _, pid := range kin {
		if err := stop(pid); errors.Is(err, syscall.ESRCH) {
			continue
		} else if err != nil {
			return pids, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// stop sends SIGSTOP and waits until it has taken effect, which is later.
func stop(pid int) error {
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return fmt.Errorf("stop process %d: %w", pid, err)
	}
	for {
		switch s, err := state(pid); {
		case err != nil:
			return err
		case s == 'T' || s == 't' || s == 'Z' || s == 0:
			return nil
		}
		time.Sleep(time.Millisecond)
	}
}

// alive tells whether a process that is not ours to wait for is there.
func alive(pid int) bool {
	s, err := state(pid)
	return err == nil && s != 0 && s != 'Z'
}

// Close kills the program if it is running and ends the guarding. What was to be
// removed is left to the caller. Calling it again does nothing.
func (p *Process) Close() error {
	err := p.Kill()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.standby == nil || p.running() {
		return err // if it cannot be killed, the standby stays
	}
	_ = p.standby.Process.Kill() // before its pipe closes, or it would remove files
	_ = p.standby.Wait()
	p.standby = nil
	prepared.Delete(p)
	return err
}
