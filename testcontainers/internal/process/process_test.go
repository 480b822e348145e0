package process_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"weak"

	"go.uber.org/goleak"

	"github.com/oncemill/oncemill/testcontainers/internal/process"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shell returns a command that runs a script; its output goes to a file.
func shell(t *testing.T, script string) process.Command {
	t.Helper()
	return process.Command{
		Path: "/bin/sh",
		Args: []string{"-c", script},
		Env:  []string{"PATH=/usr/bin:/bin"},
		Log:  filepath.Join(t.TempDir(), "log"),
	}
}

func prepare(t *testing.T) *process.Process {
	t.Helper()
	p, err := process.Prepare("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func TestKillEndsTheChildrenToo(t *testing.T) {
	t.Parallel()
	p := prepare(t)
	// A child in a session of its own, like a Postgres backend.
	command := shell(t, "setsid sleep 1000 & echo $!; wait")
	if err := p.Start(command); err != nil {
		t.Fatal(err)
	}
	child := line(t, command.Log)
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if p.Running() {
		t.Error("the process still runs")
	}
	state, _ := exec.Command("ps", "-o", "state=", "-p", child).Output()
	if s := strings.TrimSpace(string(state)); s != "" && !strings.HasPrefix(s, "Z") {
		t.Errorf("the child %s is in state %s", child, s)
	}
	if err := p.Kill(); err != nil {
		t.Errorf("killing it again: %v", err)
	}
	if err := p.Signal(syscall.SIGTERM); !errors.Is(err, process.ErrNotRunning) {
		t.Errorf("a signal to it: %v", err)
	}
	if err := p.Freeze(); !errors.Is(err, process.ErrNotRunning) {
		t.Errorf("freezing it: %v", err)
	}
}

func TestAProcessCanBeStartedAgain(t *testing.T) {
	t.Parallel()
	p := prepare(t)
	command := shell(t, "exec sleep 1000")
	for range 3 {
		if err := p.Start(command); err != nil {
			t.Fatal(err)
		}
		if err := p.Start(command); err == nil {
			t.Error("it could be started twice at once")
		}
		if err := p.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if !p.Wait(10 * time.Second) {
			t.Fatal("it has not ended")
		}
	}
	if p.Killed() {
		t.Error("SIGTERM is taken for SIGKILL")
	}
	if err := p.Start(command); err != nil {
		t.Fatal(err)
	}
	if p.Killed() {
		t.Error("it is taken for killed while it runs")
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if !p.Killed() {
		t.Error("nobody has killed it")
	}
}

func TestRunTellsHowTheProgramEnded(t *testing.T) {
	t.Parallel()
	p := prepare(t)
	for script, want := range map[string]string{
		"exit 0":        "",
		"exit 3":        "exit status 3",
		"kill -KILL $$": "ended by signal: killed",
	} {
		err := p.Run(t.Context(), shell(t, script))
		if want == "" && err != nil || want != "" && (err == nil || err.Error() != want) {
			t.Errorf("%s: %v", script, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := p.Run(ctx, shell(t, "exec sleep 1000")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("after the deadline: %v", err)
	}
	if p.Running() {
		t.Error("the program goes on after the deadline")
	}
	if err := p.Run(t.Context(), process.Command{Path: "/no/such/program"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a program that is not there: %v", err)
	}
}

func TestAClosedProcessStaysClosed(t *testing.T) {
	t.Parallel()
	p := prepare(t)
	if err := p.Start(shell(t, "exec sleep 1000")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if p.Running() || p.Start(shell(t, "exit 0")) == nil {
		t.Error("it can be used after Close")
	}
}

// The shared server of a test process is held by nobody.
func TestAProcessIsNotGarbageBeforeItIsClosed(t *testing.T) {
	t.Parallel()
	p, err := process.Prepare("")
	if err != nil {
		t.Fatal(err)
	}
	command := shell(t, "echo $$; exec sleep 1000")
	if err := p.Start(command); err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(line(t, command.Log))
	if err != nil {
		t.Fatal(err)
	}
	held := weak.Make(p)
	p = nil
	for range 3 {
		runtime.GC()
	}
	if p = held.Value(); p == nil {
		t.Fatal("it was collected")
	}
	if p.PID() != pid {
		t.Errorf("process %d runs, not %d", p.PID(), pid)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

func TestLogTailKeepsTheEnd(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "log")
	if tail := process.LogTail(file); tail != "" {
		t.Errorf("the tail of no file is %q", tail)
	}
	if err := os.WriteFile(file, []byte(strings.Repeat("x", 5000)+"the end\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if tail := process.LogTail(file); len(tail) > 2100 || !strings.HasSuffix(tail, "xthe end") {
		t.Errorf("the tail is %q", tail)
	}
}

// line waits for a program's first line of output.
func line(t *testing.T, file string) string {
	t.Helper()
	for range 1000 {
		text, _ := os.ReadFile(file)
		if first, _, ok := strings.Cut(string(text), "\n"); ok {
			return first
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the program prints nothing")
	return ""
}
