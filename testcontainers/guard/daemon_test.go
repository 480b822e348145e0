package guard_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/oncemill/oncemill/testcontainers/internal/cache"
	"github.com/oncemill/oncemill/testcontainers/internal/process"
)

// program builds the command, with the race detector if the test has it.
var program = sync.OnceValues(func() (path string, err error) {
	path, unlock, err := cache.Prepare("oncemill-guard")
	if err != nil {
		return "", err
	}
	defer unlock()
	args := append([]string{"build", "-o", path}, raceFlags...)
	if out, err := exec.Command("go", append(args, "github.com/oncemill/oncemill/cmd/oncemill")...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

// run runs the command to its end, and returns what it has printed.
func run(t testing.TB, args ...string) string {
	t.Helper()
	path, err := program()
	must(t, err)
	cmd := exec.CommandContext(within(t), path, args...)
	var stderr bytes.Buffer
	cmd.Env, cmd.Stderr = []string{}, &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("oncemill %s: %v\n%s", strings.Join(args, " "), err, &stderr)
	}
	return string(out)
}

// A daemon is an `oncemill guard`, always at the same address.
type daemon struct {
	t       testing.TB
	name    string
	url     string
	log     string // a file
	command process.Command
	process *process.Process
	ended   chan error // how it has ended
	starts  int
}

// newDaemon starts a guard.
func newDaemon(t testing.TB, name, database string, flags ...string) *daemon {
	t.Helper()
	path, err := program()
	must(t, err)
	port, err := process.FreePort()
	must(t, err)
	address := fmt.Sprintf("127.0.0.1:%d", port)
	d := &daemon{t: t, name: name, url: "http://" + address, log: filepath.Join(t.TempDir(), "log")}
	d.command = process.Command{
		Path: path, Log: d.log, Env: raceEnvironment,
		Args: append([]string{"guard", "--listen", address, "--database-url", database}, flags...),
	}
	d.process, err = process.Prepare("")
	must(t, err)
	t.Cleanup(d.close)
	must(t, d.start())
	return d
}

func (d *daemon) close() {
	must(d.t, d.process.Close())
	if d.ended != nil {
		<-d.ended
	}
	if text := d.logged(); d.t.Failed() || strings.Contains(text, "DATA RACE") || strings.Contains(text, "panic") {
		d.t.Errorf("%s has logged:\n%s", d.name, shortened(text))
	}
}

func shortened(text string) string {
	const most = 6000
	if len(text) > most {
		return text[:most/2] + "\n...\n" + text[len(text)-most/2:]
	}
	return text
}

func (d *daemon) logged() string {
	text, err := os.ReadFile(d.log)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err.Error()
	}
	return string(text)
}

// start starts the guard, for the first time or again, and returns when it serves.
func (d *daemon) start() error {
	d.t.Helper()
	d.starts++
	ended := make(chan error, 1)
	d.ended = ended
	go func() { ended <- d.process.Run(context.Background(), d.command) }()
	var failed error
	eventually(d.t, d.name+" serves", func() bool {
		select {
		case failed = <-ended:
			d.ended = nil
			failed = fmt.Errorf("%s did not start: %w\n%s", d.name, failed, shortened(d.logged()))
			return true
		default:
			return strings.Count(d.logged(), "guard starts") >= d.starts
		}
	}, d.logged)
	if failed != nil {
		d.starts--
	}
	return failed
}

// kill ends the guard with SIGKILL.
func (d *daemon) kill() {
	d.t.Helper()
	must(d.t, d.process.Kill())
	<-d.ended
	d.ended = nil
}

// terminate sends SIGTERM, and returns a function that waits for the end and wants it to
// be in peace.
func (d *daemon) terminate() (await func()) {
	d.t.Helper()
	must(d.t, d.process.Signal(syscall.SIGTERM))
	return func() {
		d.t.Helper()
		select {
		case err := <-d.ended:
			if err != nil {
				d.t.Errorf("%s, told to stop: %v", d.name, err)
			}
			d.ended = nil
		case <-within(d.t).Done():
			d.t.Fatalf("%s does not end", d.name)
		}
		if !strings.Contains(d.logged(), "guard has stopped") {
			d.t.Errorf("%s does not say that it has stopped", d.name)
		}
	}
}
