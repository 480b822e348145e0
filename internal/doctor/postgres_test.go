package doctor_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/oncemill/oncemill/internal/doctor"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/schema"
)

const week = 7 * 24 * time.Hour

// The tests' server does not write through, and the role is for nothing special: the rest
// is in order. On a server that does, see testcontainers/doctor.
func TestADatabaseInOrderIsOK(t *testing.T) {
	t.Parallel()
	d := reader(t)
	listener := pq.NewListener(d.url, time.Second, time.Second, nil)
	defer listener.Close()
	must(t, listener.Listen(outbox.Channel("")))
	r := d.lookAs(doctor.Postgres{Role: doctor.Reader})
	r.wantOnly("durability")
	r.want(doctor.OK, "connection", "127.0.0.1")
	r.want(doctor.OK, "pooler", "none")
	r.want(doctor.OK, "schema", fmt.Sprintf("version %d", schema.Version))
	r.want(doctor.OK, "grants", d.role)
	r.want(doctor.OK, "relay", "1 relay listens")
	r.want(doctor.OK, "retention", "0 consumers")
	r.want(doctor.OK, "vacuum")
	r.want(doctor.OK, "sizes", "claims", "outbox")
}

func TestADatabaseThatCannotBeReached(t *testing.T) {
	t.Parallel()
	d := migrated(t)
	for address, words := range map[string][]string{
		"postgres://app:hunter2@127.0.0.1:1/app?sslmode=disable":             {"127.0.0.1:1/app cannot be reached", "refused", "check the address"},
		strings.Replace(d.url, "sslmode=disable", "sslmode=require", 1):      {"SSL is not enabled", "sslmode=disable"},
		strings.Replace(d.url, "hunter2", "hunter23", 1):                     {"cannot be reached", "password", "credentials"},
		"postgres://app:hunter2@127.0.0.1:1,127.0.0.1:2/app?sslmode=disable": {"127.0.0.1:1,127.0.0.1:2/app"},
	} {
		r := d.lookAs(doctor.Postgres{URL: address})
		if len(r.all) != 1 {
			t.Errorf("%d findings: %v", len(r.all), r.all)
		}
		r.want(doctor.Fail, "connection", words...)
	}
}

// What a role's settings do, whoever has set them.
func TestSettingsThatDoHarmAreNamed(t *testing.T) {
	t.Parallel()
	d := reader(t)
	for _, test := range []struct {
		more  string
		level doctor.Level
		check string
		words []string
	}{
		{"&synchronous_commit=off", doctor.Fail, "durability", []string{"synchronous_commit is off", "messages are lost that were acknowledged", "out of the connection string"}},
		{"&default_transaction_read_only=on", doctor.Fail, "writable", []string{"default_transaction_read_only", `ALTER ROLE "` + d.role}},
		{"&default_transaction_isolation=serializable", doctor.Warn, "isolation", []string{"serializable", "40001"}},
		{"&statement_timeout=1500", doctor.Warn, "timeouts", []string{"statement_timeout is 2s", "LockWait"}},
		{"&lock_timeout=100", doctor.Warn, "timeouts", []string{"lock_timeout is 100ms"}},
		{"&idle_in_transaction_session_timeout=1000", doctor.Warn, "timeouts", []string{"idle_in_transaction_session_timeout is 1s"}},
		{"&idle_session_timeout=600000", doctor.Warn, "timeouts", []string{"idle_session_timeout is 10m", "listens"}},
		{"&binary_parameters=yes", doctor.Warn, "parameters", []string{"binary_parameters", "jsonb"}},
	} {
		d.look(test.more).want(test.level, test.check, test.words...)
	}
}

// What turns it on again depends on who has turned it off.
func TestSynchronousCommitOffIsNamedWithWhatTurnsItOn(t *testing.T) {
	t.Parallel()
	d := reader(t)
	role := pq.QuoteIdentifier(d.role)
	var database string
	must(t, d.admin.QueryRow(`SELECT quote_ident(current_database())`).Scan(&database))
	for _, whose := range []string{"ALTER DATABASE " + database, "ALTER ROLE " + role, "ALTER ROLE " + role + " IN DATABASE " + database} { // each beats those before it
		d.exec(whose + ` SET synchronous_commit = off`)
		d.look("").want(doctor.Fail, "durability", "synchronous_commit is off for role", d.role, strings.ReplaceAll(whose, database, `"`+database+`"`)+" SET synchronous_commit = on")
		d.exec(whose + ` SET synchronous_commit = on`)
		for _, f := range d.look("").all {
			if strings.Contains(f.Found, "synchronous_commit is off") {
				t.Errorf("after %s SET synchronous_commit = on: %v", whose, f)
			}
		}
	}
	d.look("&synchronous_commit=off").want(doctor.Fail, "durability", "synchronous_commit is off", "out of the connection string")
}

// The warning about binary_parameters is true.
func TestBinaryParametersBreakJSON(t *testing.T) {
	t.Parallel()
	d := migrated(t)
	for more, breaks := range map[string]bool{"": false, "&binary_parameters=yes": true} {
		_, err := testenv.Open(t, d.url+more).Exec(`SELECT $1::jsonb`, []byte(`{}`))
		if breaks && (err == nil || !strings.Contains(err.Error(), "unsupported jsonb version number")) || !breaks && err != nil {
			t.Errorf("%q: %v", more, err)
		}
	}
}

func TestAnotherEncodingIsNamed(t *testing.T) {
	t.Parallel()
	d := reader(t)
	name := strings.ToLower("latin_" + strings.ReplaceAll(d.role, " ", "_"))
	d.exec(`CREATE DATABASE ` + name + ` ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'`)
	t.Cleanup(func() { _, _ = d.admin.Exec(`DROP DATABASE ` + name + ` WITH (FORCE)`) })
	at := strings.LastIndex(d.url, "/")
	query := d.url[strings.Index(d.url[at:], "?")+at:]
	d.lookAs(doctor.Postgres{URL: d.url[:at] + "/" + name + query}).want(doctor.Fail, "encoding", "SQL_ASCII", "ENCODING 'UTF8'")
}

func TestTheSchemasVersionIsComparedWithTheBuilds(t *testing.T) {
	t.Parallel()
	d := reader(t)
	for version, words := range map[int][]string{
		schema.Oldest:      {"WARN", fmt.Sprintf("needs version %d", schema.Version), "oncemill migrate"},
		schema.Oldest - 1:  {"FAIL", "too old", "oncemill migrate"},
		schema.Version + 1: {"FAIL", "newer than this program", "upgrade this program"},
	} {
		d.exec(fmt.Sprintf(`DELETE FROM oncemill.schema_version; INSERT INTO oncemill.schema_version VALUES (%d)`, version))
		r := d.look("")
		r.want(doctor.Level(words[0]), "schema", append(words[1:], fmt.Sprintf("version %d", version))...)
		if words[0] == "FAIL" {
			r.want(doctor.Skip, "the rest")
		}
	}
	r := d.lookAs(doctor.Postgres{Schema: "its own"})
	r.want(doctor.Fail, "schema", `"its own" has no Oncemill tables`, "oncemill migrate --schema 'its own'")
	newDatabase(t, testenv.EmptyPostgresURL).look("").want(doctor.Fail, "schema", "no Oncemill tables", "`oncemill migrate`")
}

// On the version before, the doctor asks nothing of tables that are not there.
func TestTheDoctorRunsOnTheVersionBefore(t *testing.T) {
	t.Parallel()
	d := reader(t)
	d.exec(`DROP TABLE oncemill.scheduled, oncemill.published; DELETE FROM oncemill.schema_version WHERE version > 5`)
	r := d.lookAs(doctor.Postgres{Role: doctor.Reader})
	r.want(doctor.Warn, "schema", "version 5")
	r.want(doctor.Skip, "scheduled", "from schema version 6 on")
	r.want(doctor.OK, "grants")
	r.wantOnly("durability", "schema", "scheduled", "relay")
}

func TestAMissingGrantIsNamedWithItsStatement(t *testing.T) {
	t.Parallel()
	for _, role := range doctor.Roles[:7] {
		d := migrated(t)
		d.lookAs(doctor.Postgres{Role: role}).want(doctor.Fail, "schema", "may not use schema", "GRANT USAGE ON SCHEMA oncemill TO")
		d.exec(`GRANT USAGE ON SCHEMA oncemill TO ` + pq.QuoteIdentifier(d.role) + `; GRANT SELECT ON oncemill.schema_version TO ` + pq.QuoteIdentifier(d.role))
		for range 30 { // what it says is done, until nothing is left
			r := d.lookAs(doctor.Postgres{Role: role})
			var statements []string
			for _, f := range r.all {
				if f.Check == "grants" && f.Level == doctor.Fail {
					statements = append(statements, f.Do)
				}
			}
			if len(statements) == 0 {
				r.want(doctor.OK, "grants", string(role))
				break
			}
			d.exec(statements[0])
		}
	}
}

func TestRightsThatAreTooManyAreNamed(t *testing.T) {
	t.Parallel()
	d := migrated(t)
	d.exec(`ALTER SCHEMA oncemill OWNER TO ` + pq.QuoteIdentifier(d.role))
	r := d.lookAs(doctor.Postgres{Role: doctor.Relay})
	r.want(doctor.Warn, "owner", "but not claims", "next migration")
	for _, table := range []string{"claims", "events", "handler_errors", "outbox", "parked", "published", "scheduled", "schema_version", "secrets", "watermarks"} {
		d.exec(`ALTER TABLE oncemill.` + table + ` OWNER TO ` + pq.QuoteIdentifier(d.role))
	}
	d.exec(`ALTER SEQUENCE oncemill.tokens OWNER TO ` + pq.QuoteIdentifier(d.role))
	d.lookAs(doctor.Postgres{Role: doctor.Relay}).want(doctor.Warn, "owner", "belongs to role", "drop them")
	r = d.lookAs(doctor.Postgres{Role: doctor.Migrate})
	r.want(doctor.OK, "owner")
	r.want(doctor.OK, "grants", "may migrate")
	other := reader(t)
	other.lookAs(doctor.Postgres{Role: doctor.Migrate}).want(doctor.Fail, "grants", "is not the owner", "GRANT")
	// Before the first migration it is a schema that has to be made.
	first := newDatabase(t, testenv.EmptyPostgresURL)
	first.lookAs(doctor.Postgres{Role: doctor.Migrate}).want(doctor.Fail, "grants", "may not create a schema", "GRANT CREATE ON DATABASE", `TO "`+first.role+`"`)
	first.exec(`DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO %I', current_database(), ` + pq.QuoteLiteral(first.role) + `); END $$`)
	first.lookAs(doctor.Postgres{Role: doctor.Migrate}).want(doctor.OK, "grants", "may migrate")
	address := testenv.PostgresURL(t)
	superuser := &database{t: t, url: address}
	superuser.lookAs(doctor.Postgres{Role: doctor.Worker}).want(doctor.Warn, "superuser")
}

// What a role may not see is not taken for absent, and the rest is looked at.
func TestARoleThatMayNotLookGetsTheRest(t *testing.T) {
	t.Parallel()
	d := migrated(t)
	d.grant(doctor.Producer)
	r := d.lookAs(doctor.Postgres{Role: doctor.Producer})
	r.want(doctor.OK, "grants")
	r.want(doctor.Skip, "schema", "may not read the schema's version", "GRANT SELECT ON oncemill.schema_version TO")
	r.want(doctor.Skip, "backlog", "may not look", "oncemill_doctor")
	for _, check := range []string{"in doubt", "retention"} {
		r.want(doctor.Skip, check, "may not look", "oncemill_doctor")
	}
	for _, check := range []string{"relay", "old snapshots"} {
		r.want(doctor.Skip, check, "GRANT pg_read_all_stats TO")
	}
	r.want(doctor.OK, "sizes")
}

// A table that somebody has locked costs its own finding only.
func TestALockedTableDoesNotHoldUpTheDoctor(t *testing.T) {
	t.Parallel()
	d := reader(t)
	tx, err := d.admin.Begin()
	must(t, err)
	defer tx.Rollback() //nolint:errcheck // it has only locked
	_, err = tx.Exec(`LOCK TABLE oncemill.outbox IN ACCESS EXCLUSIVE MODE`)
	must(t, err)
	r := d.look("")
	r.want(doctor.Skip, "backlog", "no answer within", "lock timeout")
	r.want(doctor.OK, "in doubt")
	r.want(doctor.OK, "vacuum")
}

func TestClocksThatAreApart(t *testing.T) {
	t.Parallel()
	d := reader(t)
	for apart, level := range map[time.Duration]doctor.Level{time.Second: doctor.OK, -30 * time.Second: doctor.Warn, time.Hour: doctor.Fail} {
		p := doctor.Postgres{Clock: func() time.Time { return time.Now().Add(apart) }}
		if r := d.lookAs(p); level == doctor.OK {
			r.want(level, "clock")
		} else {
			r.want(level, "clock", "5 minutes of margin", "NTP")
		}
	}
}

func TestConnectionsThatRunOut(t *testing.T) {
	t.Parallel()
	d := reader(t)
	d.exec(`ALTER ROLE ` + pq.QuoteIdentifier(d.role) + ` CONNECTION LIMIT 10`)
	d.look("").want(doctor.OK, "connections")
	d.gone()
	d.exec(`ALTER ROLE ` + pq.QuoteIdentifier(d.role) + ` CONNECTION LIMIT 1`)
	r := d.look("")
	r.want(doctor.Warn, "connections", "1 connections of 1 that it may have", "CONNECTION LIMIT")
	r.want(doctor.Skip, "pooler", "too many connections")
}

// gone waits until the server has ended the role's sessions, which it does soon after they
// are closed.
func (d *database) gone() {
	d.t.Helper()
	for n, end := 1, time.Now().Add(time.Minute); n > 0; time.Sleep(5 * time.Millisecond) {
		must(d.t, d.admin.QueryRow(`SELECT count(*) FROM pg_stat_activity WHERE usename = $1`, d.role).Scan(&n))
		if time.Now().After(end) {
			d.t.Fatal("the role's sessions do not end")
		}
	}
}

func TestAnOldSnapshotIsNamedWithItsHolder(t *testing.T) {
	t.Parallel()
	d := reader(t)
	tx, err := testenv.Open(t, d.url+"&application_name=forgotten+report").Begin()
	must(t, err)
	defer tx.Rollback() //nolint:errcheck // it only reads
	_, err = tx.Exec(`SET TRANSACTION ISOLATION LEVEL REPEATABLE READ`)
	must(t, err)
	_, err = tx.Exec(`SELECT 'hunter2'`)
	must(t, err)
	d.look("").want(doctor.OK, "old snapshots")
	// Other tests have transactions too: the oldest counts.
	r := d.lookAs(doctor.Postgres{Long: time.Nanosecond})
	r.want(doctor.Warn, "old snapshots", "has had a transaction open for", "SELECT pg_terminate_backend(", "vacuum")
}
