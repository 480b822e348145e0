package main_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/oncemill/oncemill/testcontainers/kafkaserver"
)

// The demo keeps its promise on a small run, and leaves nothing behind.
func TestQuickstart(t *testing.T) {
	t.Parallel()
	keepsItsPromise(t, "nats", "lost ack")
}

// The same on a real Kafka.
func TestQuickstartKafka(t *testing.T) {
	needJava(t)
	t.Parallel()
	keepsItsPromise(t, "kafka", "lost offset commit")
}

func keepsItsPromise(t *testing.T, broker, loss string) {
	d := start(t, "-messages", "500", "-broker", broker)
	if err := d.wait(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, d.stdout.String(), d.stderr.String())
	}
	lines := strings.Split(strings.TrimSuffix(d.stdout.String(), "\n"), "\n")
	last := lines[len(lines)-1]
	want := regexp.MustCompile(`^demo: broker=` + broker + ` published=500 deliveries=\d+ duplicates=[1-9]\d* effects=500 lost=0 twice=0$`)
	if !want.MatchString(last) {
		t.Errorf("the last line is %q", last)
	}
	for _, fault := range []string{"billing: handler error", "billing: handler panic", "billing: killed with SIGKILL",
		"shipping: killed with SIGKILL", "relay: killed with SIGKILL", loss} {
		if n := strings.Count(d.stdout.String(), fault+" ("); n < 5 {
			t.Errorf("%q is shown %d times, want at least 5:\n%s", fault, n, d.stdout.String())
		}
	}
	d.leavesNothing()
}

// needJava ends a test where there is none that Kafka runs on.
func needJava(t *testing.T) {
	t.Helper()
	_, err := kafkaserver.FindJava(t.Context())
	if errors.Is(err, kafkaserver.ErrNoJava) && os.Getenv("ONCEMILL_TEST_REQUIRE_KAFKA") != "1" {
		t.Skip(kafkaserver.ErrNoJava)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Ctrl-C in the middle of the work ends all processes and removes all files.
func TestQuickstartInterrupted(t *testing.T) {
	t.Parallel()
	isInterrupted(t, "nats")
}

func TestQuickstartKafkaInterrupted(t *testing.T) {
	needJava(t)
	t.Parallel()
	isInterrupted(t, "kafka")
}

func isInterrupted(t *testing.T, broker string) {
	d := start(t, "-broker", broker)
	d.await("killed with SIGKILL")
	d.signal(os.Interrupt)
	var exit *exec.ExitError
	if err := d.wait(); !errors.As(err, &exit) || exit.ExitCode() != 130 {
		t.Errorf("interrupted: %v, want exit status 130\n%s", err, d.stderr.String())
	}
	d.leavesNothing()
}

// Nobody can clean up after a kill -9, but no process outlives the conductor.
func TestQuickstartKilled(t *testing.T) {
	t.Parallel()
	isKilled(t, "nats")
}

func TestQuickstartKafkaKilled(t *testing.T) {
	needJava(t)
	t.Parallel()
	isKilled(t, "kafka")
}

func isKilled(t *testing.T, broker string) {
	d := start(t, "-broker", broker)
	d.await("killed with SIGKILL")
	d.signal(os.Kill)
	if err := d.wait(); err == nil {
		t.Error("it was killed, but has ended well")
	}
	for deadline := time.Now().Add(20 * time.Second); len(d.processes()) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still there: %q", d.processes())
		}
	}
}

// Without Java nothing is started, and one line says what to install.
func TestQuickstartKafkaWithoutJava(t *testing.T) {
	t.Parallel()
	d := startWith(t, []string{"PATH=", "JAVA_HOME=", "ONCEMILL_JAVA="}, "-broker", "kafka")
	var exit *exec.ExitError
	if err := d.wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("without Java: %v, want exit status 1", err)
	}
	said := d.stderr.String()
	if strings.Count(said, "\n") != 1 || !strings.Contains(said, "openjdk-17-jre-headless") || d.stdout.Len() > 0 {
		t.Errorf("it says %q and %q", d.stdout.String(), said)
	}
}

func TestQuickstartRefusesWhatItCannotShow(t *testing.T) {
	t.Parallel()
	for arg, want := range map[string]string{
		"-messages=10":           "must be at least 100",
		"-messages=many":         "-messages",
		"-broker=carrier-pigeon": "carrier-pigeon",
		"10000":                  "no flag",
	} {
		d := start(t, arg)
		if err := d.wait(); err == nil || !strings.Contains(d.stderr.String(), want) {
			t.Errorf("%s: %v, %s", arg, err, d.stderr.String())
		}
	}
}

// A demo is one run of the program.
type demo struct {
	t              *testing.T
	binary, tmp    string
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer
	lines          chan string
	ended          chan struct{}
	err            error
}

func start(t *testing.T, args ...string) *demo {
	t.Helper()
	return startWith(t, nil, args...)
}

// startWith starts it with other variables in its environment.
func startWith(t *testing.T, environment []string, args ...string) *demo {
	t.Helper()
	if testing.Short() {
		t.Skip("starts servers: make test")
	}
	d := &demo{t: t, binary: filepath.Join(t.TempDir(), "quickstart"), ended: make(chan struct{})}
	if out, err := exec.Command("go", "build", "-o", d.binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	// Not a t.TempDir: root's Postgres runs as a user who cannot enter that.
	var err error
	if d.tmp, err = os.MkdirTemp("", "quickstart-test-"); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(d.tmp, 0o755); err != nil {
		t.Fatal(err)
	}
	d.cmd = exec.Command(d.binary, args...)
	d.cmd.Env = append(append(os.Environ(), "TMPDIR="+d.tmp), environment...)
	d.cmd.Stderr = &d.stderr
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

func (d *demo) read(stdout io.Reader) {
	for lines := bufio.NewScanner(io.TeeReader(stdout, &d.stdout)); lines.Scan(); {
		d.lines <- lines.Text()
	}
	d.err = d.cmd.Wait()
	close(d.ended)
}

// await waits for a line with a text in it.
func (d *demo) await(text string) {
	d.t.Helper()
	for {
		select {
		case line := <-d.lines:
			if strings.Contains(line, text) {
				return
			}
		case <-d.ended:
			d.t.Fatalf("ended (%v) without having said %q:\n%s", d.err, text, d.stderr.String())
		}
	}
}

func (d *demo) signal(s os.Signal) {
	d.t.Helper()
	if err := d.cmd.Process.Signal(s); err != nil {
		d.t.Fatal(err)
	}
}

func (d *demo) wait() error {
	d.t.Helper()
	select {
	case <-d.ended:
	case <-time.After(3 * time.Minute):
		_ = d.cmd.Process.Signal(syscall.SIGQUIT) // where does it hang?
		<-d.ended
		d.t.Fatalf("it does not end:\n%s", d.stderr.String())
	}
	return d.err
}

func (d *demo) leavesNothing() {
	d.t.Helper()
	for _, line := range d.processes() {
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

// processes returns the command lines of the processes that the demo has started,
// and their children, where /proc has them: each is its program or has its
// directory in the arguments.
func (d *demo) processes() (lines []string) {
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
