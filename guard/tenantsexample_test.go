package guard_test

import (
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/oncemill/oncemill/guard"
)

// A tenant is added to a file, as oncemill guard tenants add does, and found by its key.
func ExampleTenants() {
	dir, err := os.MkdirTemp("", "tenants-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "tenants.json")
	apiKey, entry := guard.NewAPIKey()
	err = guard.EditTenants(file, func(tenants []guard.TenantEntry) ([]guard.TenantEntry, error) {
		return append(tenants, guard.TenantEntry{Name: "acme", Rate: 200, Burst: 2, Keys: []guard.KeyEntry{entry}}), nil
	})
	if err != nil {
		log.Fatal(err)
	}

	tenants := &guard.Tenants{File: file} // and go tenants.Run(ctx), to see changes
	if err := tenants.Check(); err != nil {
		log.Fatal(err)
	}
	tenant, ok := tenants.Find(apiKey)
	fmt.Println(tenant.Name, tenant.KeyID == entry.ID, ok)
	for range 3 {
		ok, _ := tenants.Allow(tenant.Name)
		fmt.Println(ok)
	}
	// Output:
	// acme true true
	// true
	// true
	// false
}

// Clients of another system keep their API key: its entry goes into the tenants file.
func ExampleImportAPIKey() {
	entry, err := guard.ImportAPIKey("sk-6b7f0c1d2e3a4958b7c6d5e4f3021a9b")
	fmt.Println(len(entry.ID), len(entry.SHA256), err)
	_, err = guard.ImportAPIKey("secret")
	fmt.Println(err)
	// Output:
	// 8 64 <nil>
	// an API key to import has 32 to 512 letters, this has 6: give out a new one instead
}
