package doctor_test

import (
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/oncemill/oncemill/internal/doctor"
	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/own"
)

// An asynchronous standby can be promoted without what was acknowledged last, and a
// replica takes no writes.
func TestStandbysAreNamed(t *testing.T) {
	t.Parallel()
	pair := own.PostgresPair(t, testcontainers.PostgresPairOptions{Volatile: true, Async: true})
	standby := pair.Standby()
	database := testcontainers.DatabaseOn(t, pair.Primary())
	address := asRole(t, database, "relay", doctor.Relay)
	want(t, look(t, doctor.Postgres{URL: address}), doctor.Warn, "standbys", "1 standby is attached", "asynchronous", "synchronous_standby_names is empty")

	// Only whether a standby that is named is connected, not every role may see.
	reload := func(setting string) {
		execute(t, database.DB, `ALTER SYSTEM SET `+setting)
		execute(t, database.DB, `SELECT pg_reload_conf()`)
	}
	reload(`synchronous_standby_names = '*'`)
	until(t, "the setting is there", func() bool { return setting(t, database.DB, "synchronous_standby_names") == "*" })
	want(t, look(t, doctor.Postgres{URL: address}), doctor.Skip, "standbys", "1 standby", "GRANT pg_read_all_stats")
	execute(t, database.DB, `GRANT pg_read_all_stats TO relay`)
	until(t, "the standby is synchronous", func() bool {
		for _, f := range look(t, doctor.Postgres{URL: address}) {
			if f.Check == "standbys" && f.Level == doctor.OK {
				return true
			}
		}
		return false
	})
	want(t, look(t, doctor.Postgres{URL: address}), doctor.OK, "standbys", "1 attached, 1 of them synchronous")
	execute(t, database.DB, `ALTER ROLE relay SET synchronous_commit = local`)
	want(t, look(t, doctor.Postgres{URL: address}), doctor.Warn, "standbys", "synchronous_commit is local", `ALTER ROLE "relay" SET synchronous_commit = on`)
	execute(t, database.DB, `ALTER ROLE relay SET synchronous_commit = remote_write`)
	want(t, look(t, doctor.Postgres{URL: address}), doctor.Warn, "standbys", "synchronous_commit is remote_write", "loses its power", `ALTER ROLE "relay" SET synchronous_commit = on`)

	onStandby := beside(t, address, standby)
	var found []doctor.Finding
	until(t, "the standby has applied what the primary has done", func() bool {
		found = look(t, doctor.Postgres{URL: onStandby, Role: doctor.Relay})
		return len(found) > 10
	})
	want(t, found, doctor.Fail, "primary", "this server is a replica", "target_session_attrs=read-write")
	want(t, found, doctor.OK, "schema")

	execute(t, database.DB, `ALTER ROLE relay RESET synchronous_commit`)
	must(t, standby.Stop())
	until(t, "the primary has noticed", func() bool {
		for _, f := range look(t, doctor.Postgres{URL: address}) {
			if f.Check == "standbys" && f.Level == doctor.Warn {
				return true
			}
		}
		return false
	})
	want(t, look(t, doctor.Postgres{URL: address}), doctor.Warn, "standbys", "no synchronous standby is connected", "every commit waits")
}

// beside returns the URL of a database on another server.
func beside(t *testing.T, address string, server *testcontainers.PostgresServer) string {
	t.Helper()
	u, err := url.Parse(address)
	must(t, err)
	u.Host = fmt.Sprintf("127.0.0.1:%d", server.Port())
	return u.String()
}

// What keeps vacuum from its work without being a session is named too, and a server
// without autovacuum.
func TestSlotsAndPreparedTransactionsAreNamed(t *testing.T) {
	t.Parallel()
	server := start(t, testcontainers.PostgresOptions{Volatile: true, Settings: map[string]string{"max_prepared_transactions": "5", "autovacuum": "off", "max_connections": "20"}})
	database := testcontainers.DatabaseOn(t, server)
	address := asRole(t, database, "reader", doctor.Reader)
	execute(t, database.DB, `SELECT pg_create_physical_replication_slot('old_backup', true)`)
	execute(t, database.DB, `BEGIN; CREATE TABLE t (); PREPARE TRANSACTION 'forgotten one'`)
	found := look(t, doctor.Postgres{URL: address, Long: time.Nanosecond})
	want(t, found, doctor.Warn, "replication slots", `slot "old_backup" is used by nobody`, "pg_drop_replication_slot('old_backup')")
	want(t, found, doctor.Warn, "prepared transactions", `"forgotten one"`, "ROLLBACK PREPARED 'forgotten one'")
	want(t, found, doctor.Warn, "vacuum", "autovacuum or track_counts is off")
	want(t, found, doctor.Fail, "durability", "fsync is off")
	want(t, look(t, doctor.Postgres{URL: address}), doctor.OK, "prepared transactions", "the oldest is")

	for range 13 { // of 17 that are not reserved, with the doctor's own
		conn, err := open(t, database.URL).Conn(t.Context())
		must(t, err)
		defer conn.Close()
	}
	want(t, look(t, doctor.Postgres{URL: address}), doctor.Warn, "connections", "are in use", "SetMaxOpenConns")
	for range 6 {
		conn, err := open(t, database.URL).Conn(t.Context())
		if err != nil { // all that there are
			break
		}
		defer conn.Close()
	}
	want(t, look(t, doctor.Postgres{URL: address}), doctor.Fail, "connection", "cannot be reached", "raise max_connections")
}
