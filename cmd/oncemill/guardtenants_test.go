package main_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oncemill/oncemill/guard"
)

// tenancy is a file of tenants that a test keeps with the program.
type tenancy struct {
	t    *testing.T
	file string
}

func newTenancy(t *testing.T) *tenancy {
	return &tenancy{t, filepath.Join(t.TempDir(), "tenants.json")}
}

// run runs a command on the file and wants it to succeed. It looks for keys where they do
// not belong.
func (y *tenancy) run(args ...string) (stdout, stderr string) {
	y.t.Helper()
	code, stdout, stderr := call(y.t, map[string]string{"ONCEMILL_TENANTS": y.file}, append([]string{"guard", "tenants"}, args...)...)
	if code != 0 {
		y.t.Fatalf("%v: exit code %d, %s", args, code, stderr)
	}
	content, err := os.ReadFile(y.file)
	must(y.t, err)
	if strings.Contains(string(content), "omk_") || strings.Contains(stderr, "omk_") {
		y.t.Errorf("%v: a key is in the file or on standard error: %s", args, stderr)
	}
	return stdout, stderr
}

var printedKey = regexp.MustCompile(`^omk_[0-9a-f]{8}_[A-Za-z0-9_-]{43}\n$`)

// key runs a command that prints a new key.
func (y *tenancy) key(args ...string) (apiKey, id string) {
	y.t.Helper()
	stdout, stderr := y.run(args...)
	if !printedKey.MatchString(stdout) {
		y.t.Fatalf("%v: printed %q, want an API key alone", args, stdout)
	}
	apiKey = strings.TrimSpace(stdout)
	id = apiKey[4:12]
	if !strings.Contains(stderr, id) || !strings.Contains(stderr, "shown only now") {
		y.t.Errorf("%v: standard error is %q", args, stderr)
	}
	return apiKey, id
}

// entry returns what the file holds of a key.
func (y *tenancy) entry(id string) (tenant guard.TenantEntry, key guard.KeyEntry) {
	y.t.Helper()
	tenants, err := guard.ReadTenants(y.file)
	must(y.t, err)
	for _, tenant = range tenants {
		for _, key = range tenant.Keys {
			if key.ID == id {
				return tenant, key
			}
		}
	}
	return guard.TenantEntry{}, guard.KeyEntry{}
}

// want wants a guard to find a tenant, "" for none, by a key.
func (y *tenancy) want(apiKey, name string) {
	y.t.Helper()
	tenants := &guard.Tenants{File: y.file}
	must(y.t, tenants.Check())
	if tenant, ok := tenants.Find(apiKey); tenant.Name != name || ok != (name != "") {
		y.t.Errorf("a guard finds %+v, want %q", tenant, name)
	}
}

func TestGuardTenantsAddPrintsItsKeyOnce(t *testing.T) {
	t.Parallel()
	y := newTenancy(t)
	apiKey, id := y.key("add", "acme")
	info, err := os.Stat(y.file)
	must(t, err)
	if info.Mode() != 0o600 {
		t.Errorf("the new file has mode %v", info.Mode())
	}
	other, otherID := y.key("add", "globex.2", "--expires-in", "2160h", "--rate", "0.5", "--burst", "3", "--operator", "--note", "for <settlement>")
	y.want(apiKey, "acme")
	y.want(other, "globex.2")
	if tenant, key := y.entry(id); tenant.Rate != 0 || !key.Expires.IsZero() || key.Operator || key.Note != "" || time.Since(key.Created) > time.Hour {
		t.Errorf("got %+v", tenant)
	}
	tenant, key := y.entry(otherID)
	if tenant.Rate != 0.5 || tenant.Burst != 3 || key.Expires.Sub(key.Created) != 2160*time.Hour || !key.Operator || key.Note != "for <settlement>" {
		t.Errorf("got %+v", tenant)
	}
}

func TestGuardTenantsAddTakesTheKeyThatClientsHave(t *testing.T) {
	t.Parallel()
	y := newTenancy(t)
	const old = "tenant-key-6b7f0c1d2e3a4958b7c6d5e4f3021a9b"
	file := filepath.Join(t.TempDir(), "old-key")
	must(t, os.WriteFile(file, []byte(old+"\n"), 0o600))
	stdout, stderr := y.run("add", "acme", "--import-key-file", file)
	if stdout != "" || strings.Contains(stderr, old) {
		t.Errorf("printed %q and %q", stdout, stderr)
	}
	y.want(old, "acme")
	code, _, stderr := call(t, nil, "guard", "tenants", "add", "globex", "--tenants", y.file, "--import-key-file", file)
	if code != 1 || !strings.Contains(stderr, "have the same sha256") || strings.Contains(stderr, old) {
		t.Errorf("two tenants have the same key: exit code %d, %s", code, stderr)
	}
}

func TestGuardTenantsRotateLeavesTheOldKeyATimeOfGrace(t *testing.T) {
	t.Parallel()
	y := newTenancy(t)
	first, firstID := y.key("add", "acme")
	short, shortID := y.key("rotate", "acme", "--expires-in", "1h")
	_, shortBefore := y.entry(shortID)
	boss, bossID := y.key("rotate", "acme", "--operator")
	for _, apiKey := range []string{first, short, boss} {
		y.want(apiKey, "acme")
	}
	if _, key := y.entry(firstID); key.Expires.Sub(shortBefore.Created) != 24*time.Hour {
		t.Errorf("the first key expires at %v, want 24 hours after the next one", key.Expires)
	}
	latest, latestID := y.key("rotate", "acme", "--grace", "48h", "--note", "third")
	y.want(latest, "acme")
	_, key := y.entry(firstID)
	if key.Expires.Sub(shortBefore.Created) != 24*time.Hour {
		t.Errorf("the first key got another time of grace, until %v", key.Expires)
	}
	if _, key = y.entry(shortID); !key.Expires.Equal(shortBefore.Expires) {
		t.Errorf("the second key lives on until %v, want %v", key.Expires, shortBefore.Expires)
	}
	if _, key = y.entry(bossID); !key.Expires.IsZero() || !key.Operator {
		t.Errorf("the operator's key was rotated with the others: %+v", key)
	}
	if _, key = y.entry(latestID); key.Operator || key.Note != "third" || !key.Expires.IsZero() {
		t.Errorf("got %+v", key)
	}
	_, stderr := y.run("rotate", "acme", "--operator", "--grace", "1s")
	if _, key = y.entry(bossID); key.Expires.IsZero() || !strings.Contains(stderr, "Its key "+bossID+" expires at") || strings.Contains(stderr, latestID) {
		t.Errorf("got %+v and %q", key, stderr)
	}
}

func TestGuardTenantsRevokeRemovesAKeyOrATenant(t *testing.T) {
	t.Parallel()
	y := newTenancy(t)
	first, firstID := y.key("add", "acme")
	second, _ := y.key("rotate", "acme")
	other, _ := y.key("add", "globex")
	y.run("revoke", "acme", "--key", firstID)
	y.want(first, "")
	y.want(second, "acme")
	y.run("revoke", "acme")
	y.want(second, "")
	y.want(other, "globex")
	y.run("revoke", "globex")
	if stdout, _ := y.run("list"); stdout != "there are no tenants\n" {
		t.Errorf("list: %q", stdout)
	}
}

// Who removes a key is told what the tenant has left to claim with.
func TestGuardTenantsRevokeCountsTheKeysThatAreValid(t *testing.T) {
	t.Parallel()
	y := newTenancy(t)
	_, expired := y.key("add", "acme")
	ids := make([]string, 4)
	for i := range ids {
		_, ids[i] = y.key("rotate", "acme")
	}
	must(t, guard.EditTenants(y.file, func(tenants []guard.TenantEntry) ([]guard.TenantEntry, error) {
		tenants[0].Keys[0].Expires = tenants[0].Keys[0].Created.Add(-time.Hour)
		return tenants, nil
	}))
	for i, says := range []string{"It has 3 other valid keys.", "It has 2 other valid keys.", "It has 1 other valid key.", "It has no valid key now: nobody can claim as acme."} {
		if _, stderr := y.run("revoke", "acme", "--key", ids[i]); stderr != "Key "+ids[i]+" of tenant acme is removed. "+says+"\n" {
			t.Errorf("got %q, want that it says %q", stderr, says)
		}
	}
	if _, stderr := y.run("revoke", "acme", "--key", expired); !strings.Contains(stderr, "It has no valid key now") {
		t.Errorf("got %q", stderr)
	}
	y.key("rotate", "acme")
	if _, stderr := y.run("revoke", "acme"); !strings.HasSuffix(stderr, ", nor is its key.\n") {
		t.Errorf("got %q", stderr)
	}
}

func TestGuardTenantsListShowsNoKeys(t *testing.T) {
	t.Parallel()
	y := newTenancy(t)
	apiKey, id := y.key("add", "acme", "--rate", "200", "--note", "nightly run")
	_, oldID := y.key("rotate", "acme", "--operator")
	_, goneID := y.key("add", "globex")
	y.run("revoke", "globex", "--key", goneID)
	must(t, guard.EditTenants(y.file, func(tenants []guard.TenantEntry) ([]guard.TenantEntry, error) {
		tenants[0].Keys[1].Expires = tenants[0].Keys[1].Created.Add(-time.Hour)
		return tenants, nil
	}))
	table, _ := y.run("list")
	lines := strings.Split(strings.TrimSpace(table), "\n")
	if len(lines) != 4 {
		t.Fatalf("got\n%s", table)
	}
	for i, parts := range [][]string{{"TENANT", "KEY", "STATE", "EXPIRES"}, {"acme", id, "valid", "200", `"nightly run"`}, {"acme", oldID, "expired", "yes"}, {"globex", "no key"}} {
		for _, part := range parts {
			if !strings.Contains(lines[i], part) {
				t.Errorf("no %q in %q", part, lines[i])
			}
		}
	}
	asJSON, _ := y.run("list", "--json")
	var one struct {
		Tenant, State, Note string
		KeyID               string `json:"key_id"`
		Expires             *time.Time
	}
	must(t, json.Unmarshal([]byte(strings.SplitN(asJSON, "\n", 2)[0]), &one))
	if one.Tenant != "acme" || one.State != "valid" || one.KeyID != id || one.Note != "nightly run" || one.Expires != nil {
		t.Errorf("got %+v", one)
	}
	_, key := y.entry(id)
	for _, listed := range []string{table, asJSON} {
		if strings.Contains(listed, apiKey[13:]) || strings.Contains(listed, key.SHA256) {
			t.Errorf("the key or its digest is in\n%s", listed)
		}
	}
}

// Two people may edit the file at a time: here ten processes do.
func TestGuardTenantsInSeveralProcessesLoseNothing(t *testing.T) {
	t.Parallel()
	path, err := binary()
	must(t, err)
	y := newTenancy(t)
	var all sync.WaitGroup
	for n := range 10 {
		all.Go(func() {
			out, err := exec.Command(path, "guard", "tenants", "add", fmt.Sprintf("tenant-%d", n), "--tenants", y.file).CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	all.Wait()
	tenants, err := guard.ReadTenants(y.file)
	must(t, err)
	if len(tenants) != 10 {
		t.Errorf("%d of 10 tenants are there", len(tenants))
	}
}

func TestGuardTenantsNamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	y := newTenancy(t)
	y.key("add", "acme")
	y.key("add", "boss", "--operator")
	short := filepath.Join(t.TempDir(), "short-key")
	must(t, os.WriteFile(short, []byte(secret), 0o600))
	broken := filepath.Join(t.TempDir(), "broken.json")
	must(t, os.WriteFile(broken, []byte(`{"tenants":[{"name":"acme","kees":[]}]}`), 0o600))
	for says, test := range map[string]struct {
		code int
		args []string
	}{
		"give --tenants or set ONCEMILL_TENANTS":      {2, []string{"add", "acme"}},
		"takes NAME besides flags":                    {2, []string{"rotate", "--tenants", y.file}},
		"takes flags, or one of add, rotate, revoke":  {2, []string{"lists"}},
		"takes flags only":                            {2, []string{"list", "acme"}},
		"NAME must be 1 to 63 of a-z":                 {2, []string{"add", "Acme Corp", "--tenants", y.file}},
		"there is a tenant acme in " + y.file:         {1, []string{"add", "acme", "--tenants", y.file}},
		"--burst goes with --rate":                    {2, []string{"add", "globex", "--tenants", y.file, "--burst", "5"}},
		"want a number from 0.001":                    {2, []string{"add", "globex", "--tenants", y.file, "--rate", "0"}},
		"want a whole number from 1":                  {2, []string{"add", "globex", "--tenants", y.file, "--burst", "0"}},
		"want a time of at least 1s":                  {2, []string{"add", "globex", "--tenants", y.file, "--expires-in", "90d"}},
		"want a time above 0":                         {2, []string{"rotate", "acme", "--tenants", y.file, "--grace", "0"}},
		"has 32 to 512 letters, this has 7":           {2, []string{"add", "globex", "--tenants", y.file, "--import-key-file", short}},
		"--import-key-file: open":                     {2, []string{"add", "globex", "--tenants", y.file, "--import-key-file", y.file + ".none"}},
		"field note: want 500 bytes":                  {1, []string{"add", "globex", "--tenants", y.file, "--note", strings.Repeat("n", 501)}},
		`there is no tenant "globex" in ` + y.file:    {1, []string{"rotate", "globex", "--tenants", y.file}},
		`there is no tenant "initech"`:                {1, []string{"revoke", "initech", "--tenants", y.file}},
		"all keys of boss are an operator's":          {2, []string{"rotate", "boss", "--tenants", y.file}},
		"tenant acme has no key with this id":         {1, []string{"revoke", "acme", "--key", "00000000", "--tenants", y.file}},
		"no such file":                                {1, []string{"list", "--tenants", y.file + ".none"}},
		`broken.json: tenant "acme": line 1: unknown`: {1, []string{"list", "--tenants", broken}},
		`tenant "acme": line 1: unknown field "kees"`: {1, []string{"add", "globex", "--tenants", broken}},
	} {
		code, stdout, stderr := call(t, nil, append([]string{"guard", "tenants"}, test.args...)...)
		if code != test.code || stdout != "" || !strings.Contains(stderr, says) || strings.Contains(stderr, secret) {
			t.Errorf("%q: exit code %d, %q; want %d and %q", test.args, code, stderr, test.code, says)
		}
	}
	if tenants, err := guard.ReadTenants(y.file); err != nil || len(tenants) != 2 {
		t.Errorf("the file has changed: %+v (%v)", tenants, err)
	}
	if _, err := os.Stat(y.file + ".none"); err == nil {
		t.Error("a command that failed has made a file")
	}
}

func TestGuardTenantsAloneListsItsCommands(t *testing.T) {
	t.Parallel()
	code, stdout, stderr := call(t, nil, "guard", "tenants")
	_, long, _ := call(t, nil, "help", "guard", "tenants")
	if code != 0 || stderr != "" || stdout != long {
		t.Errorf("exit code %d, %q and %q", code, stdout, stderr)
	}
	for _, word := range []string{"add", "rotate", "revoke", "list"} {
		if !strings.Contains(stdout, "oncemill guard tenants "+word) {
			t.Errorf("no %s in\n%s", word, stdout)
		}
	}
}
