package durable

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/oncemill/oncemill/schema"
)

// Postgres is what a server and its session say about what they do with a commit.
type Postgres struct {
	Server         string // its address
	Database, Role string

	Fsync, FullPageWrites string

	Commit string // synchronous_commit
	Source string // who has set that, as in pg_settings

	Names        string // synchronous_standby_names
	Standbys     int    // that are connected
	Synchronous  int    // of these
	Asynchronous int    // of these
	Hidden       int    // of these: the role may not know
}

// Columns and From are what a query asks for a Postgres. Every role may ask that, and it is
// one row. Backups and logical subscriptions are no standbys, though they too are in
// pg_stat_replication.
const (
	Columns = `concat(host(inet_server_addr()), ':', current_setting('port')), current_database(), current_user,
	current_setting('fsync'), current_setting('full_page_writes'), synchronous_commit.setting, synchronous_commit.source,
	current_setting('synchronous_standby_names'), standbys.all_of_them, standbys.synchronous, standbys.asynchronous, standbys.hidden`

	From = `pg_settings AS synchronous_commit, (
	SELECT count(*) AS all_of_them, count(*) FILTER (WHERE sync_state IN ('sync', 'quorum')) AS synchronous,
		count(*) FILTER (WHERE sync_state = 'async') AS asynchronous, count(*) FILTER (WHERE sync_state IS NULL) AS hidden
	FROM pg_stat_replication AS r
	WHERE sync_state <> 'async' OR COALESCE(state, '') <> 'backup' AND COALESCE(application_name, '') NOT IN ('pg_basebackup', 'pg_receivewal')
		AND NOT EXISTS (SELECT FROM pg_replication_slots AS s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')
) AS standbys
WHERE synchronous_commit.name = 'synchronous_commit'`
)

// Into is where Columns are scanned to.
func (p *Postgres) Into() []any {
	return []any{
		&p.Server, &p.Database, &p.Role, &p.Fsync, &p.FullPageWrites, &p.Commit, &p.Source,
		&p.Names, &p.Standbys, &p.Synchronous, &p.Asynchronous, &p.Hidden,
	}
}

// Look asks for a Postgres.
func Look(ctx context.Context, db interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}) (p Postgres, err error) {
	err = db.QueryRowContext(ctx, `SELECT `+Columns+` FROM `+From).Scan(p.Into()...)
	return p, err
}

// Warnings are those about the disk and about standbys.
func (p Postgres) Warnings() []Warning { return append(p.Disk(), p.Copies()...) }

// Disk warns if what is committed may be lost by a crash of the server.
func (p Postgres) Disk() (all []Warning) {
	add := func(where, found, why, do string) {
		all = append(all, Warning{Check: "durability", Found: found, Why: why, Do: do, Grave: true, Where: where})
	}
	if p.Fsync == "off" {
		add(p.Server, "fsync is off", "a crash of the machine can lose or destroy any part of the database, claims and all", "set fsync = on in postgresql.conf, and make the cluster anew if it has crashed since")
	}
	if p.FullPageWrites == "off" {
		add(p.Server, "full_page_writes is off", "a crash in the middle of a write leaves torn pages, which nothing repairs", "set full_page_writes = on in postgresql.conf")
	}
	if p.Commit == "off" {
		add(p.where(), "synchronous_commit is off for "+p.who(),
			"a commit returns before it is on the disk. After a crash of the server, messages are lost that were acknowledged: their claims are gone, with their rows and what they published, and nobody sends them again. Claims of Guard are safe, they set it on; a relay publishes again what it had deleted; the purge sets it off itself, and loses nothing",
			p.set())
	}
	return all
}

// Copies warns if what is committed may be lost by a failover.
func (p Postgres) Copies() (all []Warning) {
	add := func(where, found, why, do string) {
		all = append(all, Warning{Check: "standbys", Found: found, Why: why, Do: do, Where: where})
	}
	const promoted = "one that is promoted may lack what was committed last: its messages are acknowledged, so they are lost with their claims and rows, and a claim that is missing lets an effect happen again"
	switch {
	case p.Names == "" && p.Standbys > 0:
		add(p.Server, counted(p.Standbys, "standby is", "standbys are")+" attached, all of them asynchronous: synchronous_standby_names is empty", promoted,
			"name one in synchronous_standby_names, or accept that after a failover the last messages are to be compared by hand")
	case p.Names != "" && p.Commit == "local":
		add(p.where(), "synchronous_standby_names is set, but synchronous_commit is local for "+p.who(),
			"commits do not wait for the standby: after a failover, messages are lost that were acknowledged, with what they did", p.set())
	case p.Names != "" && p.Commit == "remote_write":
		add(p.where(), "synchronous_standby_names is set, but synchronous_commit is remote_write for "+p.who(),
			"commits wait until the standby has written, not until it has flushed to its disk: if the standby's machine loses its power when the primary is lost, messages are lost that were acknowledged, with what they did", p.set())
	}
	if p.Names != "" && p.Asynchronous > 0 {
		add(p.Server, fmt.Sprintf("%d of %s asynchronous", p.Asynchronous, counted(p.Standbys, "standby is", "standbys are")), promoted,
			"promote a synchronous one only, and keep the others out of automatic failover; or name them too in synchronous_standby_names")
	}
	return all
}

func (p Postgres) where() string { return p.Server + " " + p.Database }

func (p Postgres) who() string { return `role "` + p.Role + `"` }

// set is what sets synchronous_commit on where it was set, so that nothing else has the last
// word.
func (p Postgres) set() string {
	const on = " SET synchronous_commit = on"
	role, database := schema.Quote(p.Role), schema.Quote(p.Database)
	switch p.Source {
	case "client":
		return "take synchronous_commit out of the connection string (or PGOPTIONS)"
	case "session":
		return "see which program, or pooler, sets synchronous_commit for the session"
	case "database user":
		return "ALTER ROLE " + role + " IN DATABASE " + database + on
	case "database":
		return "ALTER DATABASE " + database + on
	case "user":
		return "ALTER ROLE " + role + on
	case "global":
		return "ALTER ROLE ALL" + on
	}
	return "set synchronous_commit = on in postgresql.conf (or by ALTER SYSTEM), or ALTER ROLE " + role + on
}
