package oncemill_test

import (
	"database/sql"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/dbcheck"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/schema"
)

func TestMigrateFromManyProcessesAtOnce(t *testing.T) {
	t.Parallel()
	url := testenv.EmptyPostgresURL(t)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			driver := []string{"postgres", "pgx"}[i%2]
			db, err := sql.Open(driver, url)
			if err == nil {
				defer db.Close()
				err = oncemill.Migrate(within(t), db, "")
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	must(t, (&oncemill.Inbox{DB: testenv.Open(t, url)}).Check(within(t)))
}

func TestMigrateKeepsTheRowsOfAnOlderSchema(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", `Odd "name".; --`} {
		db := testenv.Open(t, testenv.EmptyPostgresURL(t))
		migrations, err := schema.Under(name)
		must(t, err)
		run := func(query string) {
			t.Helper()
			_, err := db.Exec(strings.ReplaceAll(query, "oncemill.", schema.Quote(name)+"."))
			must(t, err)
		}
		run(migrations[0].SQL)
		run(`INSERT INTO oncemill.outbox (topic, payload) VALUES ('t', ''), ('t', 'payload')`)
		run(`INSERT INTO oncemill.claims (consumer, key) VALUES ('c', 'k')`)
		in := &oncemill.Inbox{DB: db, Schema: name}
		err = in.Check(within(t))
		want(t, err, oncemill.ErrSchema)
		wantText(t, err, "version 1, too old", "oncemill migrate")

		for range 2 { // the second time there is nothing to do
			must(t, oncemill.Migrate(within(t), db, name))
		}
		must(t, in.Check(within(t)))
		run(`DELETE FROM oncemill.claims WHERE consumer = 'c' AND key = 'k'`)
		var rows string
		query := `SELECT string_agg(concat_ws(' ', topic, encode(payload, 'escape'), ordering_key IS NULL), ',' ORDER BY id) FROM ` + schema.Quote(name) + `.outbox`
		must(t, db.QueryRow(query).Scan(&rows))
		if rows != "t  t,t payload t" {
			t.Errorf("rows are %q", rows)
		}
		run(`INSERT INTO oncemill.outbox (topic, ordering_key, payload) VALUES ('t', 'key', NULL)`)
	}
}

// The files can be run backwards by a tool that reads goose's annotations.
func TestMigrationsCanBeUndone(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, schema.Version)
	f := newFixture(t)
	f.exec(`INSERT INTO oncemill.outbox (topic, ordering_key, payload) VALUES ('t', 'key', NULL)`)
	migrations, err := schema.Under("")
	must(t, err)
	undo := func(to int) {
		for i := len(migrations) - 1; i >= to; i-- {
			file, err := schema.FS.ReadFile(migrations[i].Name)
			must(t, err)
			_, down, found := strings.Cut(string(file), "-- +goose Down")
			if !found {
				t.Fatalf("%s cannot be undone", migrations[i].Name)
			}
			f.exec(down)
			version, err := dbcheck.Version(within(t), f.db, "")
			must(t, err)
			if version != i {
				t.Errorf("%s undone: version %d", migrations[i].Name, version)
			}
		}
	}
	for to := len(migrations) - 1; to >= 0; to-- {
		undo(to)
		must(t, oncemill.Migrate(within(t), f.db, ""))
	}
	undo(0)
}

func TestTwoSchemasInOneDatabase(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for _, name := range []string{`other`, `Odd "name".; --`} {
		must(t, oncemill.Migrate(within(t), f.db, name))
		in := &oncemill.Inbox{DB: f.db, Schema: name}
		must(t, in.Check(within(t)))
		c := in.Consumer("test")
		for range 2 {
			must(t, c.Once(within(t), "k", effect(name)))
		}
		f.wantEffects(name, 1)
		_, err := in.Purge(within(t))
		must(t, err)
	}
	must(t, f.consumer().Once(within(t), "k", effect("default")))
	f.wantEffects("default", 1)
}

func TestAWrongDatabaseFailsAtStart(t *testing.T) {
	t.Parallel()
	testenv.NeedsSession(t, "settings of the connection string")
	f := newFixture(t)
	check := func(db *sql.DB, schema string) error {
		return (&oncemill.Inbox{DB: db, Schema: schema}).Check(within(t))
	}
	must(t, check(f.db, ""))

	err := check(f.db, "absent")
	want(t, err, oncemill.ErrSchema)
	wantText(t, err, `"absent"`, "oncemill migrate --schema absent")

	readOnly := f.open("postgres", f.url+"&default_transaction_read_only=on")
	err = check(readOnly, "")
	want(t, err, oncemill.ErrReadOnly)
	wantText(t, err, "default_transaction_read_only")

	err = check(f.open("postgres", "postgres://127.0.0.1:1/x?sslmode=disable"), "")
	want(t, err, oncemill.ErrUnavailable)
	wantText(t, err, "cannot be reached", "127.0.0.1")

	f.exec(`INSERT INTO oncemill.schema_version (version) VALUES ($1)`, schema.Version+1)
	err = check(f.db, "")
	want(t, err, oncemill.ErrSchema)
	wantText(t, err, fmt.Sprintf("version %d", schema.Version+1), "upgrade this program")
	want(t, oncemill.Migrate(within(t), f.db, ""), oncemill.ErrSchema)

	f.exec(`DELETE FROM oncemill.schema_version`)
	want(t, check(f.db, ""), oncemill.ErrSchema)

	wantText(t, check(nil, ""), "Inbox.DB is nil")
}

func TestMigrateRefusesAnotherEncoding(t *testing.T) {
	t.Parallel()
	url := testenv.EmptyPostgresURL(t)
	admin := testenv.Open(t, url)
	name := strings.TrimPrefix(mustDatabase(t, admin), "oncemill") + "_latin"
	_, err := admin.Exec(`CREATE DATABASE ` + name + ` ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0`)
	must(t, err)
	t.Cleanup(func() {
		_, err := admin.Exec(`DROP DATABASE ` + name + ` WITH (FORCE)`)
		must(t, err)
	})
	db := testenv.Open(t, strings.Replace(url, "/oncemill"+strings.TrimSuffix(name, "_latin"), "/"+name, 1))
	wantText(t, oncemill.Migrate(within(t), db, ""), "LATIN1", "UTF8")
}

func mustDatabase(t *testing.T, db *sql.DB) (name string) {
	t.Helper()
	must(t, db.QueryRow(`SELECT current_database()`).Scan(&name))
	return name
}

func TestMigrationsAreNumberedWithoutGaps(t *testing.T) {
	t.Parallel()
	migrations, err := schema.Under("x")
	must(t, err)
	for i, m := range migrations {
		if m.Version != i+1 || !strings.HasPrefix(m.Name, fmt.Sprintf("%04d_", i+1)) {
			t.Errorf("migration %d is %d, %s", i+1, m.Version, m.Name)
		}
		if strings.Contains(m.SQL, "oncemill.") {
			t.Errorf("%s has a schema name that is not replaced", m.Name)
		}
	}
	if len(migrations) != schema.Version {
		t.Errorf("%d migrations, but schema.Version is %d", len(migrations), schema.Version)
	}
}
