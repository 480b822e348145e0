package guardapi_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/cache"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	// examples is how many requests are made up for an operation, in each phase. The
	// same ones each time.
	examples = "25"
	seed     = "20260521"

	limit = 5 * time.Minute // of what runs a minute at most, on a machine that is busy
)

// Environment variables.
const (
	pythonVariable        = "ONCEMILL_PYTHON"              // the program python3
	requirePythonVariable = "ONCEMILL_TEST_REQUIRE_PYTHON" // "1": fail where something is missing
)

const auditToken = "an-audit-token-of-at-least-32-characters"

// What the guard does is what its description says, and what is not as described it
// refuses.
func TestTheGuardIsAsItsDescriptionSays(t *testing.T) {
	t.Parallel()
	schemathesis := install(t)
	oncemill := filepath.Join(t.TempDir(), "oncemill")
	if out, err := exec.Command("go", "build", "-o", oncemill, "github.com/oncemill/oncemill/cmd/oncemill").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	t.Run("without tenants", func(t *testing.T) {
		g := start(t, oncemill)
		g.compare(schemathesis, nil)
	})
	t.Run("with tenants", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "tenants.json")
		key, err := exec.Command(oncemill, "guard", "tenants", "add", "acme", "--operator", "--tenants", file).Output()
		must(t, err)
		apiKey := strings.TrimSpace(string(key))
		g := start(t, oncemill, "--tenants", file)
		g.compare(schemathesis, []string{"GUARD_TENANT=acme", "GUARD_KEY=" + apiKey}, "--header", "X-SafeAgent-Api-Key: "+apiKey)
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// lack ends a test for which the machine has not what it needs.
func lack(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv(requirePythonVariable) == "1" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

//go:embed requirements.txt
var requirements string

// install returns the path of schemathesis, in an environment that is made once, and again
// if Python or what is required changes.
func install(t *testing.T) (path string) {
	t.Helper()
	name := os.Getenv(pythonVariable)
	if name == "" {
		name = "python3"
	}
	about, err := exec.Command(name, "-c", "import ensurepip, venv, sys; assert sys.version_info >= (3, 10); print(sys.version, sys.executable)").Output()
	if err != nil {
		lack(t, "needs Python 3.10 or newer with venv: install python3 and python3-venv, or set %s", pythonVariable)
	}
	sum := sha256.Sum256([]byte(requirements + string(about)))
	dir, unlock, err := cache.Prepare("schemathesis-" + hex.EncodeToString(sum[:6]))
	must(t, err)
	defer unlock()
	path = filepath.Join(dir, "bin", "schemathesis")
	finished := filepath.Join(dir, "finished")
	if _, err := os.Stat(finished); err == nil {
		return path
	}
	fmt.Fprintf(os.Stderr, "guardapi: installing schemathesis into %s, once (a minute) ...\n", dir)
	must(t, os.RemoveAll(dir)) // what an earlier run has left half done
	for _, command := range [][]string{
		{name, "-m", "venv", dir},
		{filepath.Join(dir, "bin", "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", "requirements.txt"},
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			lack(t, "needs schemathesis: %s: %v: %s", strings.Join(command, " "), err, lastLine(out))
		}
	}
	must(t, os.WriteFile(finished, nil, 0o644))
	return path
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}

// A daemon is a running `oncemill guard`.
type daemon struct {
	t   *testing.T
	url string
	log logbook
}

// A logbook is what a process has written.
type logbook struct {
	mu    sync.Mutex
	text  bytes.Buffer
	wrote chan struct{}
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.wrote <- struct{}{}:
	default:
	}
	return l.text.Write(p)
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

var listens = regexp.MustCompile(`guard starts.* listen=([0-9.:]+)`)

// start starts a guard on a database of its own, and ends it with the test.
func start(t *testing.T, oncemill string, flags ...string) *daemon {
	t.Helper()
	database := testcontainers.Postgres(t)
	token := filepath.Join(t.TempDir(), "audit-token")
	must(t, os.WriteFile(token, []byte(auditToken+"\n"), 0o600))
	d := &daemon{t: t, log: logbook{wrote: make(chan struct{}, 1)}}
	cmd := exec.Command(oncemill, append([]string{
		"guard", "--listen", "127.0.0.1:0", "--database-url", database.URL, "--audit-token-file", token, "--test-calls", "1000000",
	}, flags...)...)
	cmd.Env = []string{} // not the test's
	cmd.Stderr = &d.log
	must(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // no error if it has ended
		if err := <-ended; err != nil {
			t.Errorf("the guard: %v", err)
		}
		if t.Failed() {
			t.Logf("the guard has logged:\n%s", &d.log)
		}
	})
	patience := time.After(time.Minute)
	for d.url == "" {
		select {
		case <-d.log.wrote:
		case <-patience:
			t.Fatal("the guard does not start")
		case err := <-ended:
			ended <- err
			t.Fatal("the guard has ended")
		}
		if found := listens.FindStringSubmatch(d.log.String()); found != nil {
			d.url = "http://" + found[1]
		}
	}
	return d
}

// compare runs schemathesis, which fails if it finds anything.
func (d *daemon) compare(schemathesis string, env []string, flags ...string) {
	d.t.Helper()
	hooks, err := filepath.Abs("hooks.py")
	must(d.t, err)
	ctx, cancel := context.WithTimeout(d.t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, schemathesis, append([]string{
		"run", d.url + "/openapi.json", "--checks", "all", "--max-examples", examples, "--seed", seed, "--request-timeout", "30", "--suppress-health-check", "all",
		"--header", "X-SafeAgent-Audit-Token: " + auditToken,
	}, flags...)...)
	cmd.Dir = d.t.TempDir() // for what it writes
	cmd.WaitDelay = time.Second
	cmd.Env = append(os.Environ(), append(env, "SCHEMATHESIS_HOOKS=hooks", "PYTHONPATH="+filepath.Dir(hooks),
		"PYTHONDONTWRITEBYTECODE=1", "PYTHONUTF8=1", "NO_COLOR=1", "COLUMNS=200", "NO_PROXY=127.0.0.1", "no_proxy=127.0.0.1")...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		d.t.Errorf("schemathesis: %v\n%s", errors.Join(err, ctx.Err()), &out)
	}
	summary := regexp.MustCompile(`(\d+) generated, (\d+) passed`).FindStringSubmatch(out.String())
	if summary == nil || summary[1] == "0" || summary[1] != summary[2] {
		d.t.Errorf("schemathesis has not tried anything:\n%s", &out)
	} else {
		d.t.Logf("%s requests", summary[1])
	}
}
