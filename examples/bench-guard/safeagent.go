package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// safeAgentVersion is the one that is measured, and its package with what its server
// needs.
const (
	safeAgentVersion = "0.1.25"
	safeAgentPackage = "safeagent-exec-guard[payment]==" + safeAgentVersion
)

// startSafeAgent starts SafeAgent's server, as its documentation says.
func (s *stage) startSafeAgent(ctx context.Context) (contender, error) {
	bin, err := safeAgentBin(ctx)
	if err != nil {
		return contender{}, err
	}
	addr, port, err := freePort()
	if err != nil {
		return contender{}, err
	}
	audit := rand.Text() + rand.Text()
	cmd := exec.Command(filepath.Join(bin, "uvicorn"), "safeagent_exec_guard.payment_server:app", "--port", port)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(),
		"SAFEAGENT_SETTLEMENT_SECRET="+rand.Text()+rand.Text(),
		"SAFEAGENT_AUDIT_TOKEN="+audit,
		"SAFEAGENT_DB_PATH="+filepath.Join(s.dir, "safeagent.db"))
	if err := s.launch(ctx, "safeagent", cmd, addr); err != nil {
		return contender{}, err
	}
	return contender{
		name: "safeagent",
		dial: func(ctx context.Context) (caller, error) { return dialHTTP(ctx, addr) },
		check: func(ctx context.Context, turn string, pairs int) error {
			return checkSafeAgent(ctx, addr, audit, turn, pairs)
		},
	}, nil
}

// checkSafeAgent counts a turn's rows in SafeAgent's database: there is one for an id.
func checkSafeAgent(ctx context.Context, addr, audit, turn string, pairs int) error {
	for status, want := range map[string]int{"": pairs, "COMMITTED": pairs, "PENDING": 0} {
		query := url.Values{"action": {turn}, "limit": {"1"}}
		if status != "" {
			query.Set("status", status)
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/audit?"+query.Encode(), nil)
		if err != nil {
			return err
		}
		req.Header.Set("X-SafeAgent-Audit-Token", audit)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		answer := struct {
			Total int `json:"total"`
		}{-1}
		if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
			return fmt.Errorf("its audit: %w", err)
		}
		if answer.Total != want {
			return fmt.Errorf("its audit has %d rows with the status %q, not %d", answer.Total, status, want)
		}
	}
	return nil
}

// safeAgentBin returns the directory of the programs of a Python environment with
// SafeAgent, which is made once and kept.
func safeAgentBin(ctx context.Context) (string, error) {
	cache := os.Getenv("ONCEMILL_CACHE")
	if cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		cache = filepath.Join(dir, "oncemill")
	}
	venv := filepath.Join(cache, "safeagent-"+safeAgentVersion)
	if !hasSafeAgent(ctx, venv) {
		if err := makeVenv(ctx, venv); err != nil {
			return "", err
		}
		if !hasSafeAgent(ctx, venv) {
			return "", fmt.Errorf("%s has no SafeAgent %s with its server", venv, safeAgentVersion)
		}
	}
	return filepath.Join(venv, "bin"), nil
}

func hasSafeAgent(ctx context.Context, venv string) bool {
	const program = `import importlib.metadata as m, fastapi, uvicorn; print(m.version("safeagent-exec-guard"))`
	out, err := exec.CommandContext(ctx, filepath.Join(venv, "bin", "python"), "-c", program).Output()
	return err == nil && strings.TrimSpace(string(out)) == safeAgentVersion
}

func makeVenv(ctx context.Context, venv string) error {
	if err := exec.CommandContext(ctx, "python3", "-c", "import venv, ensurepip").Run(); err != nil {
		return errors.New("SafeAgent needs Python 3 with venv: install it (Debian: apt-get install python3-venv)")
	}
	fmt.Printf("Installing SafeAgent %s for Python, once, into %s ...\n", safeAgentVersion, venv)
	for _, args := range [][]string{
		{"python3", "-m", "venv", "--clear", venv},
		{filepath.Join(venv, "bin", "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", safeAgentPackage},
	} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}
