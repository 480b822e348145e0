package main_test

import (
	"context"
	"database/sql"
	"strings"
	"testing"

	_ "github.com/lib/pq"

	"github.com/oncemill/oncemill"
	main "github.com/oncemill/oncemill/examples/bench"
	"github.com/oncemill/oncemill/testcontainers/postgres"
)

// A turn that has lost a message, or done one twice, or left one of its rows out, is found
// out. Each change is undone before the next.
func TestChecks(t *testing.T) {
	t.Parallel()
	db := tables(t)
	const n = 3
	for _, test := range []struct {
		check, change string
		want          string // "": nothing is wrong
	}{
		{"once", ``, ""},
		{"plain", ``, ""},
		{"hot", ``, ""},
		{"purged", ``, ""},
		{"relayed", `DELETE FROM oncemill.outbox`, ""},
		{"plain", `DELETE FROM effects WHERE key = 'b'`, "2 effects, want 3"},
		{"plain", `INSERT INTO effects (key, payload) VALUES ('a', 'pa')`, "4 effects, want 3"},
		{"plain", `UPDATE effects SET key = 'a' WHERE key = 'b'`, "2 messages with an effect, want 3"},
		{"once", `DELETE FROM effects WHERE key = 'b'`, "2 effects, want 3"},
		{"once", `DELETE FROM oncemill.claims WHERE key = 'b'`, "2 claims, want 3"},
		{"once", `UPDATE oncemill.claims SET key = 'x' WHERE key = 'b'`, "2 effects with their claim"},
		{"once", `INSERT INTO oncemill.claims (consumer, key) VALUES ('bench', 'x')`, "4 claims, want 3"},
		{"once", `UPDATE oncemill.claims SET consumer = 'other' WHERE key = 'b'`, "2 effects with their claim"},
		{"once", `DELETE FROM oncemill.outbox WHERE uuid = 'b'`, "2 rows in the outbox"},
		{"once", `INSERT INTO oncemill.outbox (topic, uuid, payload) VALUES ('t', 'a', 'pa')`, "4 rows in the outbox"},
		{"once", `UPDATE oncemill.outbox SET uuid = 'a', payload = 'pa' WHERE uuid = 'b'`, "2 messages in the outbox"},
		{"once", `UPDATE oncemill.outbox SET payload = 'pa' WHERE uuid = 'b'`, "2 effects with their row"},
		{"hot", `UPDATE accounts SET balance = balance + 1 WHERE id = 1`, "4 effects, want 3"},
		{"hot", `DELETE FROM oncemill.claims WHERE key = 'b'`, "2 claims, want 3"},
		{"hot", `UPDATE oncemill.outbox SET uuid = 'x' WHERE uuid = 'b'`, "2 messages in the outbox with their claim"},
		{"hot", `DELETE FROM oncemill.outbox WHERE uuid = 'b'`, "2 rows in the outbox"},
		{"purged", `UPDATE oncemill.claims SET settled_at = now() - interval '8 days' WHERE key = 'b'`, "1 old claims, want 0"},
		{"relayed", ``, "3 rows, want 0"},
	} {
		fill(t, db)
		exec(t, db, test.change)
		err := main.Checks[test.check](t.Context(), db, n)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s, after %q: got %v", test.check, test.change, err)
		}
	}
}

// The keys and payloads that SQL makes are like those that Go makes.
func TestRowsMadeBySQLAreLikeMessages(t *testing.T) {
	t.Parallel()
	db := tables(t)
	rows, err := db.Query(`SELECT key, ` + main.PayloadSQL("key") + ` FROM (SELECT ` + main.KeySQL("1790000000000::bigint") + ` AS key FROM generate_series(1::bigint, 500::bigint) AS g) AS k`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	last, n := "", 0
	for rows.Next() {
		var key, payload string
		if err := rows.Scan(&key, &payload); err != nil {
			t.Fatal(err)
		}
		if !aUUID.MatchString(key) || key <= last || payload != string(main.Payload(key)) {
			t.Fatalf("after %s got %s and %q", last, key, payload)
		}
		last = key
		n++
	}
	if err := rows.Err(); err != nil || n != 500 {
		t.Errorf("got %d rows, %v", n, err)
	}
}

func tables(t *testing.T) *sql.DB {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a server: make test")
	}
	server, err := postgres.Start(t.Context(), postgres.Options{Volatile: true})
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("postgres", server.URL(""))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		db.Close()
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := oncemill.Migrate(context.Background(), db, ""); err != nil {
		t.Fatal(err)
	}
	exec(t, db, main.SchemaSQL)
	return db
}

// fill makes what a turn of 3 messages leaves.
func fill(t *testing.T, db *sql.DB) {
	t.Helper()
	exec(t, db, `TRUNCATE effects, accounts, oncemill.claims, oncemill.outbox`)
	exec(t, db, `INSERT INTO accounts VALUES (0, 0), (1, 2), (2, 1)`)
	for _, key := range []string{"a", "b", "c"} {
		exec(t, db, `INSERT INTO effects (key, payload) VALUES ('`+key+`', 'p`+key+`')`)
		exec(t, db, `INSERT INTO oncemill.claims (consumer, key) VALUES ('bench', '`+key+`')`)
		exec(t, db, `INSERT INTO oncemill.outbox (topic, uuid, payload) VALUES ('t', '`+key+`', 'p`+key+`')`)
	}
}

func exec(t *testing.T, db *sql.DB, query string) {
	t.Helper()
	if _, err := db.Exec(query); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}
