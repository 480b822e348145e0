package guard

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"time"
)

// A TenantEntry is a tenant as the tenants file has it:
//
//	{"tenants": [
//	  {
//	    "name": "acme",
//	    "rate": 200,
//	    "burst": 400,
//	    "keys": [
//	      {
//	        "id": "3f2a9c1e",
//	        "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
//	        "created": "2026-05-21T09:42:00Z",
//	        "expires": "2026-08-21T09:42:00Z",
//	        "operator": true,
//	        "note": "nightly settlement"
//	      }
//	    ]
//	  }
//	]}
//
// Only name, keys, id, sha256 and created must be there.
type TenantEntry struct {
	// Name is 1 to 63 of a-z, 0-9, dot, underscore and dash, and begins with a letter or
	// a digit. Claims belong to it: another name is another tenant.
	Name string `json:"name"`

	// Rate is how many requests a second the tenant may make, and Burst how many at once.
	// 0 means what Tenants.Rate and Tenants.Burst say; with a Rate of its own, a Burst of 0
	// means twice that.
	Rate  float64 `json:"rate,omitempty"`
	Burst int     `json:"burst,omitempty"`

	Keys []KeyEntry `json:"keys"`
}

// A KeyEntry is what the tenants file holds of an API key.
type KeyEntry struct {
	ID       string    `json:"id"`                 // 8 hex digits, no two alike in the file
	SHA256   string    `json:"sha256"`             // of the whole key, 64 hex digits in lower case
	Created  time.Time `json:"created"`            // for people
	Expires  time.Time `json:"expires,omitzero"`   // from then on it counts as unknown; zero: never
	Operator bool      `json:"operator,omitempty"` // may resolve what is in doubt
	Note     string    `json:"note,omitempty"`     // for people, 500 bytes at most
}

// Expired tells whether the key has expired at a time.
func (k KeyEntry) Expired(at time.Time) bool {
	return !k.Expires.IsZero() && !at.Before(k.Expires)
}

// ReadTenants reads and checks a tenants file. Its error names the file and what is wrong
// in it, and holds none of the digests. os.ErrNotExist is wrapped if there is no file.
func ReadTenants(file string) ([]TenantEntry, error) {
	content, err := readTenantsFile(file)
	if err != nil {
		return nil, err
	}
	return parseTenants(file, content)
}

// mostTenants bounds the size of a tenants file, in bytes. Kubernetes bounds it at 1 MiB.
const mostTenants = 16 << 20

// readTenantsFile returns the content of a file that only its owner can have written.
func readTenantsFile(file string) ([]byte, error) {
	if file == "" {
		return nil, errors.New("tenants file: no name is given")
	}
	info, err := os.Stat(file) // before it is opened: that of a pipe would not return
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is not a regular file")
	}
	if err != nil {
		return nil, fmt.Errorf("tenants file %s: %w", file, err)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("tenants file %s: %w", file, err)
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		return nil, fmt.Errorf("tenants file %s: %w", file, err)
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 && runtime.GOOS != "windows" {
		return nil, fmt.Errorf("tenants file %s: others than its owner may write it (mode %04o): run chmod go-w on it", file, mode)
	}
	content, err := io.ReadAll(io.LimitReader(f, mostTenants+1))
	if err == nil && len(content) > mostTenants {
		err = fmt.Errorf("it is larger than %d bytes", mostTenants)
	}
	if err != nil {
		return nil, fmt.Errorf("tenants file %s: %w", file, err)
	}
	return content, nil
}

func parseTenants(file string, content []byte) (tenants []TenantEntry, err error) {
	root, err := parseJSON(content)
	if err != nil {
		return nil, fmt.Errorf("tenants file %s: %w", file, err)
	}
	top := root.object("tenants")
	for i, n := range top.list("tenants", true) {
		tenant, err := parseTenant(n)
		if err != nil {
			return nil, fmt.Errorf("tenants file %s: tenant %s: %w", file, titled(tenant.Name, nameForm, i), err)
		}
		tenants = append(tenants, tenant)
	}
	if top.err == nil {
		top.err = unique(tenants)
	}
	if top.err != nil {
		return nil, fmt.Errorf("tenants file %s: %w", file, top.err)
	}
	return tenants, nil
}

var (
	nameForm   = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)
	idForm     = regexp.MustCompile(`^[0-9a-f]{8}$`)
	digestForm = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// Bounds of some fields.
const (
	leastRate = 0.001 // requests a second
	mostRate  = 1e6
	mostNote  = 500 // bytes
)

func parseTenant(n node) (t TenantEntry, err error) {
	o := n.object("name", "rate", "burst", "keys")
	t.Name = o.text("name", true, nameForm, "1 to 63 of a-z, 0-9, dot, underscore and dash, with a letter or digit first")
	t.Rate = o.number("rate", "requests a second, 0.001 to 1000000 (leave it out for the guard's own)")
	t.Burst = int(o.number("burst", "a whole number, 1 to 1000000"))
	if _, ok := o.of["burst"]; ok && t.Rate == 0 {
		o.fail(n, "burst", "it goes with a rate")
	}
	if burst, ok := o.of["burst"]; ok && strconv.Itoa(t.Burst) != burst.number {
		o.fail(burst, "burst", "want a whole number, 1 to 1000000")
	}
	for i, key := range o.list("keys", true) {
		k, err := parseKey(key)
		if err != nil && o.err == nil {
			o.err = fmt.Errorf("key %s: %w", titled(k.ID, idForm, i), err)
		}
		t.Keys = append(t.Keys, k)
	}
	return t, o.err
}

func parseKey(n node) (k KeyEntry, err error) {
	o := n.object("id", "sha256", "created", "expires", "operator", "note")
	k.ID = o.text("id", true, idForm, "8 hex digits in lower case, those behind omk_ in the API key")
	k.SHA256 = o.text("sha256", true, digestForm, "64 hex digits in lower case, the SHA-256 of the whole API key")
	k.Created = o.time("created", true)
	k.Expires = o.time("expires", false)
	k.Operator = o.toggle("operator")
	k.Note = o.text("note", false, nil, "")
	if len(k.Note) > mostNote {
		o.fail(o.of["note"], "note", fmt.Sprintf("want %d bytes at most", mostNote))
	}
	return k, o.err
}

// unique fails if two of what must be unlike are alike.
func unique(tenants []TenantEntry) error {
	owners := make(map[[2]string]string)
	claim := func(field, value, owner string) error {
		of := [2]string{field, value}
		if other, ok := owners[of]; ok {
			return fmt.Errorf("%s and %s have the same %s: remove one of them", other, owner, field)
		}
		owners[of] = owner
		return nil
	}
	for i, t := range tenants {
		if err := claim("name", t.Name, fmt.Sprintf("tenant %q (number %d)", t.Name, i+1)); err != nil {
			return err
		}
		for _, k := range t.Keys {
			owner := fmt.Sprintf("key %q of tenant %q", k.ID, t.Name)
			if err := claim("id", k.ID, owner); err != nil {
				return err
			}
			if err := claim("sha256", k.SHA256, owner); err != nil {
				return err
			}
		}
	}
	return nil
}

// titled is what an entry is called in an error: by its name if that is one, else by its
// place.
func titled(name string, form *regexp.Regexp, i int) string {
	if form.MatchString(name) {
		return strconv.Quote(name)
	}
	return "number " + strconv.Itoa(i+1)
}

// shownName is a name from a file for an error, unless it is as long as an API key that
// was pasted at the wrong place.
func shownName(name string) string {
	if len(name) >= leastImport {
		return "(of " + strconv.Itoa(len(name)) + " bytes)"
	}
	return strconv.Quote(name)
}

// digest returns the SHA-256 of a key that was checked.
func (k KeyEntry) digest() (d [32]byte) {
	hex.Decode(d[:], []byte(k.SHA256))
	return d
}

// encodeTenants writes a tenants file.
func encodeTenants(tenants []TenantEntry) ([]byte, error) {
	for i := range tenants {
		if tenants[i].Keys == nil {
			tenants[i].Keys = []KeyEntry{}
		}
	}
	if tenants == nil {
		tenants = []TenantEntry{}
	}
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	err := encoder.Encode(struct {
		Tenants []TenantEntry `json:"tenants"`
	}{tenants})
	return b.Bytes(), err
}
