package guard_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oncemill/oncemill/guard"
)

// tenantsOf are checked tenants of a file.
func tenantsOf(t *testing.T, file string) *guard.Tenants {
	t.Helper()
	tenants := &guard.Tenants{File: file}
	noError(t, tenants.Check())
	return tenants
}

// newFile returns the path of a tenants file in a directory of its own.
func newFile(t *testing.T, entries ...guard.TenantEntry) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "tenants.json")
	noError(t, guard.EditTenants(file, func([]guard.TenantEntry) ([]guard.TenantEntry, error) { return entries, nil }))
	return file
}

// newTenant makes a tenant with one key, that changes may change.
func newTenant(name string, changes ...func(*guard.KeyEntry)) (apiKey string, entry guard.TenantEntry) {
	apiKey, key := guard.NewAPIKey()
	for _, change := range changes {
		change(&key)
	}
	return apiKey, guard.TenantEntry{Name: name, Keys: []guard.KeyEntry{key}}
}

// raw writes a tenants file as it is.
func raw(t *testing.T, file, content string) {
	t.Helper()
	noError(t, os.WriteFile(file, []byte(content), 0o600))
}

func wantTenant(t *testing.T, tenants *guard.Tenants, apiKey, want string) {
	t.Helper()
	if got, ok := tenants.Find(apiKey); got.Name != want || ok != (want != "") {
		t.Errorf("found tenant %+v (%v), want %q", got, ok, want)
	}
}

func TestATenantIsFoundByItsKeys(t *testing.T) {
	t.Parallel()
	first, acme := newTenant("acme")
	second, key := guard.NewAPIKey()
	key.Operator = true
	acme.Keys = append(acme.Keys, key)
	other, globex := newTenant("globex")
	if tenant, ok := new(guard.Tenants).Find(first); ok {
		t.Errorf("found %+v before there was a file", tenant)
	}
	tenants := tenantsOf(t, newFile(t, acme, globex))
	wantTenant(t, tenants, first, "acme")
	wantTenant(t, tenants, other, "globex")
	if got, _ := tenants.Find(second); got != (guard.Tenant{Name: "acme", KeyID: key.ID, Operator: true}) {
		t.Errorf("got %+v", got)
	}
	for _, none := range []string{"", first[:len(first)-1], first + " ", strings.ToUpper(first), acme.Keys[0].SHA256, acme.Keys[0].ID, strings.Repeat("x", 1<<20)} {
		wantTenant(t, tenants, none, "")
	}
	if all := fmt.Sprint(tenants.All()); all != "[{acme  false} {globex  false}]" {
		t.Errorf("all are %s", all)
	}
}

// A key stops on time, without anybody writing the file.
func TestAnExpiredKeyIsAsUnknown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		apiKey, acme := newTenant("acme", func(k *guard.KeyEntry) { k.Expires = time.Now().Add(time.Hour) })
		tenants := tenantsOf(t, newFile(t, acme))
		time.Sleep(time.Hour - time.Nanosecond)
		wantTenant(t, tenants, apiKey, "acme")
		time.Sleep(time.Nanosecond)
		wantTenant(t, tenants, apiKey, "")
	})
}

// Who runs a guard sees which key a program must be given anew, and nothing of those that
// somebody guesses.
func TestAnExpiredKeyThatIsUsedIsLoggedOnceAMinute(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		expire := func(k *guard.KeyEntry) { k.Expires = time.Now() }
		acmeKey, acme := newTenant("acme", expire)
		globexKey, globex := newTenant("globex", expire)
		valid, other := newTenant("other")
		file := newFile(t, acme, globex, other)
		tenants, log := running(t, file)
		unknown, _ := guard.NewAPIKey()
		use := func() (lines []string) {
			for range 3 {
				for apiKey, name := range map[string]string{acmeKey: "", globexKey: "", valid: "other", unknown: "", "": ""} {
					wantTenant(t, tenants, apiKey, name)
				}
			}
			return log.read()
		}
		lines := use()
		text := strings.Join(lines, "\n")
		for _, entry := range []guard.TenantEntry{acme, globex} {
			says := fmt.Sprintf(`"level":"WARN","msg":"guard: an expired API key is still used","tenant":%q,"key":%q,`, entry.Name, entry.Keys[0].ID)
			if strings.Count(text, says) != 1 {
				t.Errorf("no %s in\n%s", says, text)
			}
		}
		if len(lines) != 2 || strings.Contains(text, acmeKey[13:]) || strings.Contains(text, acme.Keys[0].SHA256) {
			t.Errorf("logged\n%s\nwant a line for each key that has expired, without the keys", text)
		}
		other.Rate = 5 // another file, with the same keys
		raw(t, file, mustJSON(t, map[string]any{"tenants": []guard.TenantEntry{acme, globex, other}}))
		reread()
		log.read()
		time.Sleep(57 * time.Second)
		if lines := use(); len(lines) != 0 {
			t.Errorf("logged again within the minute: %q", lines)
		}
		time.Sleep(2 * time.Second)
		if lines := use(); len(lines) != 2 {
			t.Errorf("logged %q a minute later, want a line for each key", lines)
		}
	})
}

// What goes into the places of a tenants file: see correct.
type parts struct{ top, tenant, key, behind string }

// correct is a tenants file, with more in it and behind it.
func (p parts) correct(id, name string) string {
	return fmt.Sprintf(`{%s"tenants":[{"name":%q,%s"keys":[
		{"id":%q,%s"sha256":%q,"created":"2026-05-21T09:42:00Z"}]}]}%s`, p.top, name, p.tenant, id, p.key, digestOf(id), p.behind)
}

func digestOf(text string) string {
	digest := sha256.Sum256([]byte(text))
	return hex.EncodeToString(digest[:])
}

func TestAWrongTenantsFileSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	apiKey, entry := guard.NewAPIKey()
	const id = "3f2a9c1e"
	two := func(a, b string) string { // two files in one
		return strings.TrimSuffix(a, "]}") + "," + strings.TrimPrefix(b, `{"tenants":[`)
	}
	right := parts{}.correct(id, "acme")
	for content, says := range map[string]string{
		"":               "unexpected end of JSON input",
		"{}":             "field tenants: is missing",
		"[]":             "want an object with the fields tenants",
		`{"tenants":{}}`: "field tenants: want a list",
		`{"tenants":[`:   "not JSON: line 1",
		parts{top: `"Tenants":[],`}.correct(id, "acme"):                                                           `unknown field "Tenants"`,
		parts{top: `"tenants":[],`}.correct(id, "acme"):                                                           `the member "tenants" is there twice`,
		parts{behind: "{}"}.correct(id, "acme"):                                                                   "after top-level value",
		parts{tenant: `"limit":5,`}.correct(id, "acme"):                                                           `tenant "acme": line 1: unknown field "limit": want name, rate, burst, keys`,
		parts{tenant: `"name":"acme",`}.correct(id, "acme"):                                                       "there twice",
		parts{tenant: `"rate":0,`}.correct(id, "acme"):                                                            `tenant "acme": line 1: field rate: want requests a second`,
		parts{tenant: `"rate":"200",`}.correct(id, "acme"):                                                        "field rate: want requests a second",
		parts{tenant: `"rate":1e9,`}.correct(id, "acme"):                                                          "field rate: want requests a second",
		parts{tenant: `"rate":5,"burst":1.5,`}.correct(id, "acme"):                                                "field burst: want a whole number",
		parts{tenant: `"burst":5,`}.correct(id, "acme"):                                                           "field burst: it goes with a rate",
		parts{key: `"expired":"",`}.correct(id, "acme"):                                                           `tenant "acme": key "3f2a9c1e": line 2: unknown field "expired"`,
		parts{key: `"expires":"2026-05-21",`}.correct(id, "acme"):                                                 `tenant "acme": key "3f2a9c1e": line 2: field expires: want a time as`,
		parts{key: `"expires":null,`}.correct(id, "acme"):                                                         "field expires: want a time as",
		parts{key: `"operator":"yes",`}.correct(id, "acme"):                                                       "field operator: want true or false",
		parts{key: `"note":7,`}.correct(id, "acme"):                                                               "field note: want a string",
		parts{key: `"note":"` + strings.Repeat("n", 501) + `",`}.correct(id, "acme"):                              "field note: want 500 bytes",
		parts{}.correct(id, "Acme"):                                                                               "tenant number 1: line 1: field name: want 1 to 63 of a-z",
		parts{}.correct(id, "-acme"):                                                                              "field name: want 1 to 63",
		parts{}.correct(id, strings.Repeat("a", 64)):                                                              "field name: want 1 to 63",
		parts{}.correct("3F2A9C1E", "acme"):                                                                       `tenant "acme": key number 1: line 2: field id: want 8 hex digits`,
		strings.Replace(right, `"name":"acme",`, "", 1):                                                           "tenant number 1: line 1: field name: is missing",
		strings.Replace(right, digestOf(id), "abc", 1):                                                            `key "3f2a9c1e": line 2: field sha256: want 64 hex digits`,
		strings.Replace(right, `,"created"`, `,"crea"`, 1):                                                        "unknown field",
		two(right, parts{}.correct("3f2a9c1f", "acme")):                                                           `tenant "acme" (number 1) and tenant "acme" (number 2) have the same name`,
		two(right, parts{}.correct(id, "globex")):                                                                 `key "3f2a9c1e" of tenant "acme" and key "3f2a9c1e" of tenant "globex" have the same id`,
		two(right, strings.Replace(parts{}.correct("3f2a9c1f", "globex"), digestOf("3f2a9c1f"), digestOf(id), 1)): "have the same sha256",

		// A key that was pasted where its id or its digest belongs is not shown.
		parts{}.correct(apiKey, "acme"):                                      "field id: want",
		parts{}.correct(id, apiKey):                                          "field name: want",
		parts{tenant: `"` + apiKey + `":1,`}.correct(id, "acme"):             "unknown field (of 56 bytes)",
		strings.Replace(right, digestOf(id), apiKey, 1):                      "field sha256: want",
		strings.Replace(right, `"sha256"`, `"`+entry.SHA256+`"`, 1):          "unknown field (of 64 bytes)",
		parts{key: `"note":"` + apiKey + `","note":"",`}.correct(id, "acme"): "there twice",
	} {
		file := filepath.Join(t.TempDir(), "tenants.json")
		raw(t, file, content)
		err := (&guard.Tenants{File: file}).Check()
		if err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "tenants file "+file) {
			t.Errorf("%s\ngot error %v, want one that says %q and names the file", content, err, says)
		}
		if err != nil && (strings.Contains(err.Error(), apiKey[13:]) || strings.Contains(err.Error(), entry.SHA256)) {
			t.Errorf("the key is in %v", err)
		}
	}
	file := filepath.Join(t.TempDir(), "tenants.json")
	raw(t, file, right)
	noError(t, (&guard.Tenants{File: file}).Check())
}

func TestTenantsThatAreSetUpWrongSayWhatIsWrong(t *testing.T) {
	t.Parallel()
	over, end := context.WithCancel(t.Context())
	end() // so that a Run that fails to fail does not go on
	dir := t.TempDir()
	for says, tenants := range map[string]*guard.Tenants{
		"Tenants.File is empty": {},
		"no such file":          {File: filepath.Join(dir, "none")},
		"is not a regular file": {File: dir},
		"Tenants.Rate must be":  {File: newFile(t), Rate: -1},
		"Tenants.Burst must be": {File: newFile(t), Rate: 1, Burst: -1},
		"and goes with a Rate":  {File: newFile(t), Burst: 1},
	} {
		if err := tenants.Check(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("Check: got error %v, want one that says %q", err, says)
		}
		if err := tenants.Run(over); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("Run: got error %v, want one that says %q", err, says)
		}
	}
}

// Whoever can write the file can make keys.
func TestATenantsFileThatOthersMayWriteIsRefused(t *testing.T) {
	t.Parallel()
	file := newFile(t)
	for mode, ok := range map[os.FileMode]bool{0o600: true, 0o400: true, 0o644: true, 0o620: false, 0o602: false, 0o666: false} {
		noError(t, os.Chmod(file, mode))
		err := (&guard.Tenants{File: file}).Check()
		if ok != (err == nil) || !ok && !strings.Contains(err.Error(), fmt.Sprintf("(mode %04o): run chmod go-w", mode)) {
			t.Errorf("mode %v: got error %v", mode, err)
		}
	}
}
