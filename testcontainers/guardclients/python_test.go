package guardclients_test

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oncemill/oncemill/testcontainers/internal/cache"
)

// Environment variables.
const (
	pythonVariable        = "ONCEMILL_PYTHON"              // the program python3
	requirePythonVariable = "ONCEMILL_TEST_REQUIRE_PYTHON" // "1": fail where something is missing
)

// lack ends a test for which the machine has not what it needs.
func lack(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv(requirePythonVariable) == "1" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// python returns the path of Python, of at least a version such as "3, 9".
func python(t *testing.T, least string) string {
	t.Helper()
	name := os.Getenv(pythonVariable)
	if name == "" {
		name = "python3"
	}
	path, err := exec.LookPath(name)
	if err != nil || exec.Command(path, "-c", "import sys; sys.exit(sys.version_info < ("+least+"))").Run() != nil {
		lack(t, "needs Python %s or newer: install python3, or set %s", strings.ReplaceAll(least, ", ", "."), pythonVariable)
	}
	return path
}

// clients are the clients of SafeAgent, installed.
type clients struct {
	python string // with the newer one
	older  string // the folder with the older one, for PYTHONPATH
}

//go:embed testdata/requirements.txt
var requirements string

const olderClient = "safeagent-exec-guard==0.1.24"

// installed are the clients, which the first test that needs them installs.
var installed struct {
	once sync.Once
	clients
	err error
}

func safeagent(t *testing.T) clients {
	t.Helper()
	python := python(t, "3, 10")
	if exec.Command(python, "-c", "import ensurepip, venv").Run() != nil {
		lack(t, "needs Python's venv: install python3-venv")
	}
	installed.once.Do(func() { installed.clients, installed.err = install(python) })
	if installed.err != nil {
		lack(t, "needs the clients of SafeAgent: %v", installed.err)
	}
	return installed.clients
}

// install installs the clients, unless they are there. The name of their folder says what
// is in it.
func install(python string) (clients, error) {
	version, err := exec.Command(python, "-c", "import sys; print(sys.version, sys.executable)").Output()
	if err != nil {
		return clients{}, err
	}
	sum := sha256.Sum256([]byte(requirements + olderClient + string(version)))
	dir, unlock, err := cache.Prepare("guardclients-" + hex.EncodeToString(sum[:6]))
	if err != nil {
		return clients{}, err
	}
	defer unlock()
	c := clients{python: filepath.Join(dir, "venv", "bin", "python"), older: filepath.Join(dir, "older")}
	finished := filepath.Join(dir, "finished")
	if _, err := os.Stat(finished); err == nil {
		return c, nil
	}
	fmt.Fprintf(os.Stderr, "guardclients: installing the clients of SafeAgent into %s, once (a minute) ...\n", dir)
	if err := os.RemoveAll(dir); err != nil {
		return c, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return c, err
	}
	list := filepath.Join(dir, "requirements.txt")
	if err := os.WriteFile(list, []byte(requirements), 0o600); err != nil {
		return c, err
	}
	for _, args := range [][]string{
		{python, "-m", "venv", filepath.Join(dir, "venv")},
		{c.python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", list},
		// What it needs is there already.
		{c.python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--target", c.older, olderClient},
	} {
		if output, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return c, fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, output)
		}
	}
	return c, os.WriteFile(finished, nil, 0o600)
}

// run runs a program in Python in its folder, and wants it to succeed. It knows the site's
// guards by its environment.
func (s *site) run(python, program string, env ...string) {
	s.t.Helper()
	cmd := exec.CommandContext(within(s.t), python, filepath.Base(program), "-v")
	cmd.Dir = filepath.Dir(program)
	cmd.WaitDelay = time.Second
	cmd.Env = append(os.Environ(), "GUARDS="+strings.Join(s.urls, " "), "AUDIT_TOKEN="+s.audit,
		"PYTHONDONTWRITEBYTECODE=1", "PYTHONUTF8=1", "NO_PROXY=127.0.0.1", "no_proxy=127.0.0.1")
	cmd.Env = append(cmd.Env, env...)
	output, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("%s: %v\n%s", program, err, output)
	}
	s.t.Logf("%s\n%s", program, output)
}
