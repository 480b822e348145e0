package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/oncemill/oncemill/guard"
)

var guardTenantsCommand = command{
	name:    "guard tenants",
	summary: "add, rotate, revoke and list the API keys of a guard's tenants",
	help: `
Keep the file of tenants that oncemill guard --tenants reads. Each tenant has claims
of its own, and API keys, of which the file holds the SHA-256 only. A guard that runs
sees a change by itself, within seconds.

  oncemill guard tenants add NAME      add a tenant, with an API key
  oncemill guard tenants rotate NAME   give it a new API key in place of those it has
  oncemill guard tenants revoke NAME   remove one of its API keys, or the tenant
  oncemill guard tenants list          show names, ids of keys and when they expire

Each has a help of its own, as oncemill help guard tenants add. Several may run at a
time: they wait for one another, and none loses what another has done. For that they
flock the file's directory, which some network file systems cannot do.`,
	prepare: func(f *flags) action {
		return func(_ context.Context, stdout, _ io.Writer) error {
			f.printHelp(stdout)
			return nil
		}
	},
}

var guardTenantsAddCommand = command{
	name:    "guard tenants add",
	summary: "add a tenant, with an API key",
	args:    []string{"NAME"},
	help: `
Add a tenant with an API key to a file of tenants, which is made if it is not there,
with mode 0600. The key is printed once, alone on standard output: nothing else has it.

  oncemill guard tenants add acme --tenants tenants.json
  oncemill guard tenants add acme --tenants tenants.json --expires-in 2160h --rate 200 --burst 400

So that clients of another system need no change, the tenant can get the key that they
have, of 32 letters or more. It must be random, and nothing is printed then:

  oncemill guard tenants add acme --tenants tenants.json --import-key-file old-key`,
	prepare: prepareGuardTenantsAdd,
}

var guardTenantsRotateCommand = command{
	name:    "guard tenants rotate",
	summary: "give a tenant a new API key in place of those it has",
	args:    []string{"NAME"},
	help: `
Give a tenant a new API key, which is printed once, alone on standard output. The others
expire after a time of grace, within which its programs get the new one. A key that a
stranger has seen is better removed at once, with oncemill guard tenants revoke --key.

  oncemill guard tenants rotate acme --tenants tenants.json --grace 24h

Keys that may resolve what is in doubt are rotated apart from the others, with --operator,
which also gives a tenant its first.`,
	prepare: prepareGuardTenantsRotate,
}

var guardTenantsRevokeCommand = command{
	name:    "guard tenants revoke",
	summary: "remove an API key, or a tenant with all of them",
	args:    []string{"NAME"},
	help: `
Remove one API key of a tenant, or the tenant with all of them. Its claims stay in the
database, and are its own again if a tenant of that name is added later.

  oncemill guard tenants revoke acme --tenants tenants.json --key 3f2a9c1e
  oncemill guard tenants revoke acme --tenants tenants.json`,
	prepare: func(f *flags) action {
		file := f.tenants()
		id := f.text("key", "ID", "remove this key only, by its id as it is listed\n(default: the tenant with all its keys)")
		f.onlyHere("key")
		return func(_ context.Context, _, stderr io.Writer) error { return revoke(*file, f.args[0], *id, stderr) }
	},
}

// tenants declares the flag of the commands that keep a file of tenants.
func (f *flags) tenants() *string {
	return f.text("tenants", "FILE", "the file of tenants; required")
}

func needTenants(file string) error {
	if file == "" {
		return usagef("needs a file of tenants: give --tenants or set %s", variable("tenants"))
	}
	return nil
}

// keyOptions are the flags that say what a new API key is like.
type keyOptions struct {
	file, note *string
	expiresIn  *time.Duration
	operator   *bool
}

func (f *flags) key(operator string) keyOptions {
	o := keyOptions{file: f.tenants(), expiresIn: new(time.Duration)}
	f.add("expires-in", "TIME", "after which time the new key expires (default: never)", func(value string) (err error) {
		if *o.expiresIn, err = time.ParseDuration(value); err != nil || *o.expiresIn < time.Second {
			return errors.New("want a time of at least 1s with its unit, such as 2160h")
		}
		return nil
	})
	o.operator = f.toggle("operator", operator)
	o.note = f.text("note", "TEXT", "what the key is for; kept in the file, for people")
	f.onlyHere("operator", "note")
	return o
}

// dress gives a key what the flags say.
func (o keyOptions) dress(key *guard.KeyEntry) {
	key.Operator, key.Note = *o.operator, *o.note
	if *o.expiresIn > 0 {
		key.Expires = key.Created.Add(*o.expiresIn)
	}
}

var tenantName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

func prepareGuardTenantsAdd(f *flags) action {
	o := f.key("the key may resolve what is in doubt")
	importFile := f.text("import-key-file", "FILE", "take the API key in this file, and make none")
	f.onlyHere("import-key-file")
	var limits guard.TenantEntry
	f.add("rate", "N", "how many requests a second the tenant may make (default: any number)", func(value string) (err error) {
		if limits.Rate, err = strconv.ParseFloat(value, 64); err != nil || !(limits.Rate >= 0.001 && limits.Rate <= 1e6) {
			return errors.New("want a number from 0.001 to 1000000, such as 200")
		}
		return nil
	})
	f.add("burst", "N", "how many of them may come at once; with --rate (default: twice the rate)", func(value string) (err error) {
		if limits.Burst, err = strconv.Atoi(value); err != nil || limits.Burst < 1 || limits.Burst > 1e6 {
			return errors.New("want a whole number from 1 to 1000000, such as 400")
		}
		return nil
	})
	return func(_ context.Context, stdout, stderr io.Writer) error {
		if err := needTenants(*o.file); err != nil {
			return err
		}
		tenant := guard.TenantEntry{Name: f.args[0], Rate: limits.Rate, Burst: limits.Burst}
		switch {
		case !tenantName.MatchString(tenant.Name):
			return usagef("NAME must be 1 to 63 of a-z, 0-9, dot, underscore and dash, and begin with a letter or digit")
		case tenant.Burst > 0 && tenant.Rate == 0:
			return usagef("--burst goes with --rate")
		}
		return o.addTenant(tenant, *importFile, stdout, stderr)
	}
}

func (o keyOptions) addTenant(tenant guard.TenantEntry, importFile string, stdout, stderr io.Writer) error {
	apiKey, key, err := newKey(importFile)
	if err != nil {
		return err
	}
	o.dress(&key)
	tenant.Keys = []guard.KeyEntry{key}
	err = guard.EditTenants(*o.file, func(tenants []guard.TenantEntry) ([]guard.TenantEntry, error) {
		if indexTenant(tenants, tenant.Name) >= 0 {
			return nil, fmt.Errorf("there is a tenant %s in %s already: oncemill guard tenants rotate gives it another key", tenant.Name, *o.file)
		}
		return append(tenants, tenant), nil
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(stderr, "Tenant %s is in %s now, with the API key %s, which %s.\n", tenant.Name, *o.file, key.ID, expiry(key))
	return printKey(apiKey, stdout, stderr)
}

// newKey makes an API key, or takes that in a file, which it does not return.
func newKey(importFile string) (apiKey string, key guard.KeyEntry, err error) {
	if importFile == "" {
		apiKey, key = guard.NewAPIKey()
		return apiKey, key, nil
	}
	content, err := os.ReadFile(importFile)
	if err != nil {
		return "", key, usagef("--import-key-file: %w", err)
	}
	key, err = guard.ImportAPIKey(strings.TrimRight(string(content), "\r\n"))
	if err != nil {
		return "", key, usagef("--import-key-file %s: %w", importFile, err)
	}
	return "", key, nil
}

// printKey prints an API key that was made.
func printKey(apiKey string, stdout, stderr io.Writer) error {
	if apiKey == "" {
		return nil
	}
	fmt.Fprintln(stderr, "This is the key. It is shown only now: keep it where its user finds it.")
	if _, err := fmt.Fprintln(stdout, apiKey); err != nil {
		return fmt.Errorf("the key is in the file, but could not be printed: %w (oncemill guard tenants rotate makes another)", err)
	}
	return nil
}

func expiry(key guard.KeyEntry) string {
	if key.Expires.IsZero() {
		return "does not expire"
	}
	return "expires at " + key.Expires.UTC().Format(time.RFC3339)
}

func indexTenant(tenants []guard.TenantEntry, name string) int {
	return slices.IndexFunc(tenants, func(t guard.TenantEntry) bool { return t.Name == name })
}

// editTenant changes a file in which there is a tenant of a name, at i.
func editTenant(file, name string, edit func(tenants []guard.TenantEntry, i int) ([]guard.TenantEntry, error)) error {
	if err := needTenants(file); err != nil {
		return err
	}
	return guard.EditTenants(file, func(tenants []guard.TenantEntry) ([]guard.TenantEntry, error) {
		i := indexTenant(tenants, name)
		if i < 0 {
			return nil, fmt.Errorf("there is no tenant %q in %s (oncemill guard tenants list shows those there are)", name, file)
		}
		return edit(tenants, i)
	})
}

func prepareGuardTenantsRotate(f *flags) action {
	o := f.key("rotate the keys that may resolve what is in doubt, and not the others")
	grace := f.duration("grace", 24*time.Hour, "how long the other keys go on")
	return func(_ context.Context, stdout, stderr io.Writer) error {
		return o.rotate(f.args[0], *grace, stdout, stderr)
	}
}

func (o keyOptions) rotate(name string, grace time.Duration, stdout, stderr io.Writer) error {
	apiKey, key := guard.NewAPIKey()
	o.dress(&key)
	var others []guard.KeyEntry
	err := editTenant(*o.file, name, func(tenants []guard.TenantEntry, i int) ([]guard.TenantEntry, error) {
		keys := tenants[i].Keys
		var left int
		others, left = expire(keys, key, key.Created.Add(grace))
		if len(others) == 0 && left > 0 && !*o.operator {
			return nil, usagef("all keys of %s are an operator's: say --operator to rotate those", name)
		}
		tenants[i].Keys = append(keys, key)
		return tenants, nil
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(stderr, "Tenant %s has a new API key %s, which %s.\n", name, key.ID, expiry(key))
	for _, other := range others {
		fmt.Fprintf(stderr, "Its key %s %s.\n", other.ID, expiry(other))
	}
	return printKey(apiKey, stdout, stderr)
}

// expire has the keys that a new one is in place of expire at a time, unless they do so
// before. It returns them, and how many others can be used.
func expire(keys []guard.KeyEntry, by guard.KeyEntry, at time.Time) (expiring []guard.KeyEntry, left int) {
	for i := range keys {
		switch key := &keys[i]; {
		case key.Expired(by.Created):
		case key.Operator != by.Operator:
			left++
		default:
			if !key.Expired(at) {
				key.Expires = at
			}
			expiring = append(expiring, *key)
		}
	}
	return expiring, left
}

// revoke removes a key, or a tenant if there is no id.
func revoke(file, name, id string, stderr io.Writer) error {
	n := 0
	err := editTenant(file, name, func(tenants []guard.TenantEntry, i int) ([]guard.TenantEntry, error) {
		keys := tenants[i].Keys
		if id == "" {
			n = len(keys)
			return slices.Delete(tenants, i, i+1), nil
		}
		k := slices.IndexFunc(keys, func(k guard.KeyEntry) bool { return k.ID == id })
		if k < 0 {
			return nil, fmt.Errorf("tenant %s has no key with this id (oncemill guard tenants list shows those it has)", name)
		}
		tenants[i].Keys = slices.Delete(keys, k, k+1)
		n = validKeys(tenants[i].Keys)
		return tenants, nil
	})
	switch {
	case err != nil:
		return err
	case id == "" && n == 1:
		fmt.Fprintf(stderr, "Tenant %s is no longer in %s, nor is its key.\n", name, file)
	case id == "":
		fmt.Fprintf(stderr, "Tenant %s is no longer in %s, nor are its %d keys.\n", name, file, n)
	case n == 0:
		fmt.Fprintf(stderr, "Key %s of tenant %s is removed. It has no valid key now: nobody can claim as %s.\n", id, name, name)
	case n == 1:
		fmt.Fprintf(stderr, "Key %s of tenant %s is removed. It has 1 other valid key.\n", id, name)
	default:
		fmt.Fprintf(stderr, "Key %s of tenant %s is removed. It has %d other valid keys.\n", id, name, n)
	}
	return nil
}

// validKeys counts the keys that have not expired.
func validKeys(keys []guard.KeyEntry) (n int) {
	now := time.Now()
	for _, key := range keys {
		if !key.Expired(now) {
			n++
		}
	}
	return n
}
