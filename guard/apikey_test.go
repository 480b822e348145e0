package guard_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/oncemill/oncemill/guard"
)

func TestAnAPIKeyIsLongRandomAndStoredAsADigest(t *testing.T) {
	t.Parallel()
	seen := make(map[string]bool)
	for range 1000 {
		apiKey, entry := guard.NewAPIKey()
		form := regexp.MustCompile(`^omk_` + entry.ID + `_[A-Za-z0-9_-]{43}$`)
		if !form.MatchString(apiKey) || entry.SHA256 != digestOf(apiKey) || entry.Created.IsZero() || !entry.Expires.IsZero() || entry.Operator {
			t.Fatalf("key %s with entry %+v", apiKey, entry)
		}
		if random := apiKey[13:]; seen[random] {
			t.Fatalf("%s came twice", random)
		} else {
			seen[random] = true
		}
	}
}

// Clients of another system keep the keys they have.
func TestAKeyOfAnotherSystemIsTaken(t *testing.T) {
	t.Parallel()
	const apiKey = "sk-live-0123456789abcdefABCDEF+/=~"
	entry, err := guard.ImportAPIKey(apiKey)
	noError(t, err)
	tenants := tenantsOf(t, newFile(t, guard.TenantEntry{Name: "acme", Keys: []guard.KeyEntry{entry}}))
	wantTenant(t, tenants, apiKey, "acme")
	for says, refused := range map[string]string{
		"has 32 to 512 letters, this has 31": apiKey[:31],
		"this has 513":                       strings.Repeat("0123456789a", 50)[:513],
		"byte 9 is not":                      apiKey[:8] + " " + apiKey[8:],
		"byte 1 is not":                      "ä" + apiKey,
		"byte 35 is not":                     apiKey + "\n",
		"this has 2 different letters":       strings.Repeat("ab", 20),
	} {
		_, err := guard.ImportAPIKey(refused)
		if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), apiKey[:8]) {
			t.Errorf("got error %v, want one that says %q and not the key", err, says)
		}
	}
}
