package manifests_test

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/oncemill/oncemill/testcontainers/internal/cache"
)

// Environment variables, as for guardapi.
const (
	pythonVariable        = "ONCEMILL_PYTHON"              // the program python3
	requirePythonVariable = "ONCEMILL_TEST_REQUIRE_PYTHON" // "1": fail where something is missing
)

//go:embed requirements.txt
var requirements string

// The oldest version is what deploy/README.md says.
func TestKubernetesTakesTheManifests(t *testing.T) {
	t.Parallel()
	validate := install(t)
	files, err := filepath.Glob("../../deploy/kubernetes/*.yaml")
	must(t, err)
	if len(files) < 3 {
		t.Fatalf("there are only %d manifests", len(files))
	}
	for _, version := range []string{"1.30", "1.37"} {
		args := append([]string{"--strict", "--kubernetes-version", version}, files...)
		if out, err := exec.Command(validate, args...).CombinedOutput(); err != nil || !strings.Contains(string(out), "passed for resource") {
			t.Errorf("Kubernetes %s: %v\n%s", version, err, out)
		}
	}
}

// It would find a mistake.
func TestAFieldThatKubernetesDoesNotKnowIsFound(t *testing.T) {
	t.Parallel()
	validate := install(t)
	text, err := os.ReadFile("../../deploy/kubernetes/relay.yaml")
	must(t, err)
	wrong := filepath.Join(t.TempDir(), "relay.yaml")
	must(t, os.WriteFile(wrong, []byte(strings.Replace(string(text), "  replicas: 2\n", "  replica: 2\n", 1)), 0o600))
	if out, err := exec.Command(validate, "--strict", wrong).CombinedOutput(); err == nil || !strings.Contains(string(out), "replica") {
		t.Errorf("%v\n%s", err, out)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// install returns the path of kubernetes-validate, in an environment that is made once, and
// again if Python or what is required changes.
func install(t *testing.T) (path string) {
	t.Helper()
	lack := t.Skipf
	if os.Getenv(requirePythonVariable) == "1" {
		lack = t.Fatalf
	}
	name := os.Getenv(pythonVariable)
	if name == "" {
		name = "python3"
	}
	about, err := exec.Command(name, "-c", "import ensurepip, venv, sys; print(sys.version, sys.executable)").Output()
	if err != nil {
		lack("needs Python 3 with venv: install python3 and python3-venv, or set %s", pythonVariable)
	}
	sum := sha256.Sum256([]byte(requirements + string(about)))
	dir, unlock, err := cache.Prepare("kubernetes-validate-" + hex.EncodeToString(sum[:6]))
	must(t, err)
	defer unlock()
	path = filepath.Join(dir, "bin", "kubernetes-validate")
	finished := filepath.Join(dir, "finished")
	if _, err := os.Stat(finished); err == nil {
		return path
	}
	must(t, os.RemoveAll(dir)) // what an earlier run has left half done
	for _, command := range [][]string{
		{name, "-m", "venv", dir},
		{filepath.Join(dir, "bin", "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", "requirements.txt"},
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			lack("needs kubernetes-validate: %s: %v: %s", strings.Join(command, " "), err, out)
		}
	}
	must(t, os.WriteFile(finished, nil, 0o644))
	return path
}
