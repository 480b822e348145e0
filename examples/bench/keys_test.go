package main_test

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	main "github.com/oncemill/oncemill/examples/bench"
)

var aUUID = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-([47])[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)

// Keys are different UUIDs, and in the order of time or not.
func TestKeys(t *testing.T) {
	t.Parallel()
	for random, version := range map[bool]string{false: "7", true: "4"} {
		next := main.NewKeys(random)
		var all []string
		for range 10_000 {
			all = append(all, next())
		}
		for _, key := range all {
			if m := aUUID.FindStringSubmatch(key); m == nil || m[1] != version {
				t.Fatalf("got the key %s", key)
			}
		}
		if slices.IsSorted(all) == random {
			t.Errorf("random %v: sorted is %v", random, !random)
		}
		slices.Sort(all)
		if n := len(slices.Compact(all)); n != 10_000 {
			t.Errorf("%d of 10,000 keys are different", n)
		}
	}
}

// Messages have the size that is said, and the few rows all their share.
func TestMessages(t *testing.T) {
	t.Parallel()
	next, rows := main.NewKeys(false), make(map[int]bool)
	for range 20_000 {
		key := next()
		text := main.Payload(key)
		if len(text) != 200 || !json.Valid(text) || !strings.Contains(string(text), key) {
			t.Fatalf("got %q", text)
		}
		row, err := main.AccountOf(key)
		if err != nil || row < 0 || row >= 1000 {
			t.Fatalf("%s: got row %d, %v", key, row, err)
		}
		rows[row] = true
	}
	if len(rows) != 1000 {
		t.Errorf("only %d rows are updated", len(rows))
	}
}

func TestArraysAreQuoted(t *testing.T) {
	t.Parallel()
	if got, want := main.TextArray([]string{`a`, ``, `"b"`, `\x00,`}), `{"a","","\"b\"","\\x00,"}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// What the loop without a broker sends is what the product sends.
func TestTheShapeHasTheProductsStatements(t *testing.T) {
	t.Parallel()
	for file, want := range map[string]struct{ begin, statement string }{
		"../../batchsql.go":      {"const batchClaimSQL = `", main.GroupClaimSQL},
		"../../outbox/insert.go": {"insertSQL = `", main.GroupOutboxSQL},
	} {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		_, after, _ := strings.Cut(string(source), want.begin)
		if statement, _, found := strings.Cut(after, "`"); !found || statement != want.statement {
			t.Errorf("%s has another statement: copy it to shape.go", file)
		}
	}
}
