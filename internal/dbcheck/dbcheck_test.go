package dbcheck_test

import (
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/oncemill/oncemill/internal/dbcheck"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/schema"
)

func TestCheck(t *testing.T) {
	t.Parallel()
	good := testenv.DB(t)
	empty := testenv.Open(t, testenv.EmptyPostgresURL(t))

	tooNew := testenv.DB(t)
	exec(t, tooNew, `INSERT INTO oncemill.schema_version (version) VALUES (99)`)

	readOnly := testenv.Open(t, testenv.PostgresURL(t)+"&default_transaction_read_only=on")
	spoilt := testenv.DB(t) // one of its sessions is read-only, as after a failover
	spoilt.SetMaxOpenConns(1)
	exec(t, spoilt, `SET default_transaction_read_only = on`)

	noTLS := strings.Replace(testenv.PostgresURL(t), "sslmode=disable", "sslmode=require", 1)

	pgx, err := sql.Open("pgx", noTLS)
	if err != nil {
		t.Fatal(err)
	}
	defer pgx.Close()

	closed := testenv.DB(t)
	closed.Close()

	needed := fmt.Sprintf("version %d is needed", schema.Version)

	for name, test := range map[string]struct {
		db     *sql.DB
		schema string
		is     error
		names  []string
	}{
		"good":          {good, "", nil, nil},
		"same name":     {good, "oncemill", nil, nil},
		"other schema":  {good, "its own", dbcheck.ErrSchema, []string{`"its own"`, needed, "oncemill migrate --schema 'its own'"}},
		"no schema":     {empty, "", dbcheck.ErrSchema, []string{`"oncemill"`, needed, "oncemill migrate"}},
		"too new":       {tooNew, "", dbcheck.ErrSchema, []string{`"oncemill"`, "version 99", fmt.Sprintf("needs version %d", schema.Version), "upgrade"}},
		"old session":   {spoilt, "", nil, nil},
		"read-only":     {readOnly, "", dbcheck.ErrReadOnly, []string{"default_transaction_read_only"}},
		"no TLS":        {testenv.Open(t, noTLS), "", dbcheck.ErrUnreachable, []string{"sslmode=disable"}},
		"no TLS, pgx":   {pgx, "", dbcheck.ErrUnreachable, []string{"sslmode=disable"}},
		"no connection": {closed, "", dbcheck.ErrUnreachable, []string{"check the address"}},
	} {
		err := dbcheck.Check(t.Context(), test.db, test.schema)
		if !errors.Is(err, test.is) {
			t.Errorf("%s: error is %v, want %v", name, err, test.is)
		}
		for _, text := range test.names {
			if !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %q does not say %q", name, err, text)
			}
		}
	}
}

func TestSupported(t *testing.T) {
	t.Parallel()
	for found, want := range map[int]string{
		0: "no Oncemill tables", schema.Oldest - 1: "too old", schema.Version: "", schema.Version + 1: "too new",
	} {
		err := dbcheck.Supported("", found)
		if want == "" && err != nil || want != "" && (!errors.Is(err, dbcheck.ErrSchema) || !strings.Contains(err.Error(), want)) {
			t.Errorf("version %d: error is %v, want %q", found, err, want)
		}
	}
}

func exec(t *testing.T, db *sql.DB, query string) {
	t.Helper()
	if _, err := db.Exec(query); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}
