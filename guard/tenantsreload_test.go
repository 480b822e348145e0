package guard_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oncemill/oncemill/guard"
)

// A logbook is what was logged, a JSON object a line.
type logbook struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logbook) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(line)
}

// read returns the lines since it was called last.
func (l *logbook) read() (lines []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.text.Reset()
	return strings.FieldsFunc(l.text.String(), func(r rune) bool { return r == '\n' })
}

// running are tenants whose Run runs, on the clock of a synctest bubble.
func running(t *testing.T, file string) (*guard.Tenants, *logbook) {
	t.Helper()
	log := new(logbook)
	tenants := &guard.Tenants{File: file, Logger: slog.New(slog.NewJSONHandler(log, nil))}
	noError(t, tenants.Check())
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- tenants.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		noError(t, <-ended)
	})
	return tenants, log
}

// reread lets the time pass within which a change is seen.
func reread() {
	time.Sleep(2 * time.Second)
	synctest.Wait()
}

func TestAChangedTenantsFileIsReadAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		oldKey, acme := newTenant("acme")
		newKey, globex := newTenant("globex")
		file := newFile(t, acme)
		tenants, log := running(t, file)
		reread()
		if lines := log.read(); len(lines) != 0 {
			t.Errorf("logged %q although nothing has changed", lines)
		}
		noError(t, guard.EditTenants(file, func([]guard.TenantEntry) ([]guard.TenantEntry, error) {
			return []guard.TenantEntry{globex}, nil
		}))
		reread()
		wantTenant(t, tenants, newKey, "globex")
		wantTenant(t, tenants, oldKey, "")
		reread()
		if lines := log.read(); len(lines) != 1 || !strings.Contains(lines[0], `"tenants":1,"keys":1`) {
			t.Errorf("logged %q", lines)
		}
	})
}

// Kubernetes puts a Secret's files behind a link to a directory, and another directory
// into its place.
func TestASecretThatKubernetesReplacesIsReadAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		oldKey, acme := newTenant("acme")
		newKey, globex := newTenant("globex")
		dir := t.TempDir()
		for name, entry := range map[string]guard.TenantEntry{"..1": acme, "..2": globex} {
			noError(t, os.Mkdir(filepath.Join(dir, name), 0o700))
			content, err := os.ReadFile(newFile(t, entry))
			noError(t, err)
			raw(t, filepath.Join(dir, name, "tenants.json"), string(content))
		}
		noError(t, os.Symlink("..1", filepath.Join(dir, "..data")))
		noError(t, os.Symlink(filepath.Join("..data", "tenants.json"), filepath.Join(dir, "tenants.json")))
		tenants, _ := running(t, filepath.Join(dir, "tenants.json"))
		wantTenant(t, tenants, oldKey, "acme")
		noError(t, os.Symlink("..2", filepath.Join(dir, "..new")))
		noError(t, os.Rename(filepath.Join(dir, "..new"), filepath.Join(dir, "..data")))
		reread()
		wantTenant(t, tenants, newKey, "globex")
		wantTenant(t, tenants, oldKey, "")
	})
}

func TestABrokenTenantsFileLeavesTheTenantsAsTheyWere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		apiKey, acme := newTenant("acme")
		file := newFile(t, acme)
		good, err := os.ReadFile(file)
		noError(t, err)
		tenants, log := running(t, file)
		for _, break_ := range []func(){
			func() { raw(t, file, string(good[:len(good)/2])) },
			func() { raw(t, file, "") },
			func() { raw(t, file, strings.Replace(string(good), acme.Keys[0].SHA256, apiKey, 1)) },
			func() { raw(t, file, string(good)); noError(t, os.Chmod(file, 0o622)) },
			func() { noError(t, os.Remove(file)) },
		} {
			break_()
			reread()
			reread()
			wantTenant(t, tenants, apiKey, "acme")
			lines := log.read()
			if len(lines) != 1 || !strings.Contains(lines[0], "ERROR") || !strings.Contains(lines[0], "tenants file "+file) {
				t.Errorf("logged %q, want one error", lines)
			}
			if text := strings.Join(lines, ""); strings.Contains(text, apiKey) || strings.Contains(text, acme.Keys[0].SHA256) {
				t.Errorf("the key is in the log: %s", text)
			}
			if err := tenants.Check(); err == nil {
				t.Error("Check does not see that the file is broken")
			}
		}
		raw(t, file, string(good))
		reread()
		if lines := log.read(); len(lines) != 1 || !strings.Contains(lines[0], "INFO") {
			t.Errorf("logged %q, want that the file is good again", lines)
		}
	})
}

func wantAllowed(t *testing.T, tenants *guard.Tenants, name string, want int, wantRetry time.Duration) {
	t.Helper()
	for n := 0; ; n++ {
		ok, retry := tenants.Allow(name)
		if ok && n < want {
			continue
		}
		if ok || n != want || retry != wantRetry {
			t.Errorf("%s: %d were allowed, then %v with retry after %v; want %d and %v", name, n, ok, retry, want, wantRetry)
		}
		return
	}
}

func TestATenantIsHeldToItsRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, acme := newTenant("acme")
		acme.Rate, acme.Burst = 2, 5
		_, globex := newTenant("globex")
		_, other := newTenant("other")
		other.Rate = 0.5
		tenants := &guard.Tenants{File: newFile(t, acme, globex, other), Rate: 10}
		wantAllowed(t, tenants, "acme", 0, 2*time.Second) // nothing is read yet
		noError(t, tenants.Check())
		wantAllowed(t, tenants, "acme", 5, time.Second/2)
		for range 1000 { // those who are refused do not use up what others wait for
			wantAllowed(t, tenants, "acme", 0, time.Second/2)
		}
		time.Sleep(time.Second / 2)
		wantAllowed(t, tenants, "acme", 1, time.Second/2)
		wantAllowed(t, tenants, "globex", 20, time.Second/10)
		wantAllowed(t, tenants, "other", 1, 2*time.Second)
		wantAllowed(t, tenants, "nobody", 0, 2*time.Second)
		free := tenantsOf(t, newFile(t, globex))
		for range 1000 {
			if ok, _ := free.Allow("globex"); !ok {
				t.Fatal("a tenant without a rate was refused")
			}
		}
	})
}

// Who writes the file again does not give everybody a new burst.
func TestRateLimitsSurviveThatTheFileIsReadAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, acme := newTenant("acme")
		acme.Rate, acme.Burst = 0.1, 3
		file := newFile(t, acme)
		tenants, log := running(t, file)
		wantAllowed(t, tenants, "acme", 3, 10*time.Second)
		acme.Burst = 30
		raw(t, file, mustJSON(t, map[string]any{"tenants": []guard.TenantEntry{acme}}))
		reread()
		if lines := log.read(); len(lines) != 1 {
			t.Fatalf("logged %q", lines)
		}
		wantAllowed(t, tenants, "acme", 0, 8*time.Second)
		time.Sleep(108 * time.Second)
		wantAllowed(t, tenants, "acme", 11, 10*time.Second) // more than the old burst
	})
}

func mustJSON(t *testing.T, value any) string {
	t.Helper()
	text, err := json.Marshal(value)
	noError(t, err)
	return string(text)
}
