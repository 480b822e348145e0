package oncemill_test

import (
	"strings"
	"testing"

	"github.com/oncemill/oncemill"
)

func TestControlsTransaction(t *testing.T) {
	t.Parallel()
	for query, want := range map[string]bool{
		"COMMIT":                                 true,
		" commit ;":                              true,
		"end":                                    true,
		"END WORK":                               true,
		"abort":                                  true,
		"rollback":                               true,
		"ROLLBACK WORK":                          true,
		"rollback and chain":                     true,
		"ROLLBACK PREPARED 'x'":                  true,
		"begin":                                  true,
		"start transaction":                      true,
		"PREPARE TRANSACTION 'x'":                true,
		"-- why\nCOMMIT":                         true,
		"/* a /* nested */ one */ COMMIT":        true,
		"INSERT INTO t VALUES (1); COMMIT":       true,
		"SELECT 'a;b'; COMMIT":                   true,
		`SELECT '\'; COMMIT; --'`:                true,
		"SELECT $$;$$; COMMIT":                   true,
		"SELECT $1; COMMIT":                      true,
		"SELECT a$b$ FROM t; COMMIT; SELECT $b$": true,
		";;COMMIT":                               true,
		"INSERT INTO t VALUES (1) -- ;\n;COMMIT": true,
		"-- hello\rCOMMIT":                       true,
		"SELECT E'a'\n'\\''; COMMIT; --'":        true,
		"SELECT 1 AS a$$b$; COMMIT":              true,

		"":                                    false,
		"SELECT 1":                            false,
		"SELECT 'x; COMMIT'":                  false,
		"SELECT 'it''s; COMMIT'":              false,
		`SELECT E'\'; COMMIT'`:                false,
		`SELECT "; COMMIT"`:                   false,
		"SELECT $$; COMMIT$$":                 false,
		"SELECT $tag$; COMMIT; $$ $tag$":      false,
		"SELECT 1 /* ; COMMIT */":             false,
		"SELECT 1 -- ; COMMIT":                false,
		"SAVEPOINT a":                         false,
		"ROLLBACK TO a":                       false,
		"ROLLBACK TO SAVEPOINT a":             false,
		"rollback work to savepoint a":        false,
		"ROLLBACK /* now */ TRANSACTION TO a": false,
		"RELEASE a":                           false,
		"PREPARE commit AS SELECT 1":          false,
		"EXECUTE commit":                      false,
		"UPDATE t SET commit = 1":             false,
		"COMMITTED":                           false,
	} {
		if got := oncemill.ControlsTransaction(query); got != want {
			t.Errorf("%q: got %v, want %v", query, got, want)
		}
	}
}

func FuzzControlsTransaction(f *testing.F) {
	f.Add("SELECT $a$ ' \" /* $a$; COMMIT")
	f.Add("SELECT E'\\")
	f.Fuzz(func(t *testing.T, query string) {
		oncemill.ControlsTransaction(query) // ends, and does not panic
		if !oncemill.ControlsTransaction("COMMIT;" + query) {
			t.Errorf("a COMMIT in front of %q was missed", query)
		}
	})
}

func FuzzStoredKey(f *testing.F) {
	f.Add("a", "b")
	f.Add("\x00", "oncemill:hex:00")
	f.Add(strings.Repeat("k", 600), "oncemill:sha256:00")
	f.Fuzz(func(t *testing.T, a, b string) {
		if (a == b) != (oncemill.StoredKey(a) == oncemill.StoredKey(b)) {
			t.Errorf("%q and %q are stored as %q and %q", a, b, oncemill.StoredKey(a), oncemill.StoredKey(b))
		}
		if stored := oncemill.StoredKey(a); len(stored) > 512 || strings.Contains(stored, "\x00") {
			t.Errorf("%q is stored as %q", a, stored)
		}
	})
}
