package doctor

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/lib/pq"
)

// whyOld is why an old snapshot matters.
const whyOld = "vacuum removes no row that was deleted since, in any database of the server: purged claims and published messages stay in their tables and indexes, and everything that steps over them gets slower"

// lookForSnapshots looks for the session whose snapshot is the oldest. Texts of queries are
// not shown: they can hold anything.
func (p *Postgres) lookForSnapshots(ctx context.Context, tx *sql.Tx) error {
	long := cmp.Or(p.Long, DefaultLong)
	var pid, hidden int
	var who, database, program, state, client string
	var age float64
	err := tx.QueryRowContext(ctx, `
SELECT pid, COALESCE(usename, ''), COALESCE(datname, ''), COALESCE(application_name, ''), COALESCE(state, ''), COALESCE(client_addr::text, 'this machine'),
	extract(epoch FROM clock_timestamp() - xact_start)
FROM pg_stat_activity
WHERE pid <> pg_backend_pid() AND xact_start IS NOT NULL AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL) AND backend_type IS DISTINCT FROM 'autovacuum worker'
ORDER BY xact_start LIMIT 1`).Scan(&pid, &who, &database, &program, &state, &client, &age)
	if err != nil && err != sql.ErrNoRows {
		return err
	}
	open := time.Duration(age * float64(time.Second))
	if err == nil && open > long {
		p.warn("old snapshots", fmt.Sprintf("process %d has had a transaction open for %s: role %q, database %q, program %q from %s, %s", pid, seconds(open), who, database, program, client, state),
			whyOld, fmt.Sprintf("end what it does, or the session: SELECT pg_terminate_backend(%d); set idle_in_transaction_session_timeout for its role", pid))
		return nil
	}
	err = tx.QueryRowContext(ctx, `
SELECT count(*) FROM pg_stat_activity
WHERE datid IS NOT NULL AND NOT pg_has_role(usesysid, 'USAGE') AND NOT pg_has_role('pg_read_all_stats', 'USAGE')`).Scan(&hidden)
	if err != nil {
		return err
	}
	if hidden > 0 {
		p.skip("old snapshots", fmt.Sprintf("%s of other roles, whose transactions are not to be seen", counted(int64(hidden), 0, "session is", "sessions are")), "GRANT pg_read_all_stats TO "+pq.QuoteIdentifier(p.who))
		return nil
	}
	p.ok("old snapshots", "no transaction has been open for %s or longer", seconds(long))
	return nil
}

// lookAtSlots looks at replication slots that hold back vacuum, and standbys that do it
// by hot_standby_feedback.
func (p *Postgres) lookAtSlots(ctx context.Context, tx *sql.Tx) error {
	rows, err := tx.QueryContext(ctx, `
SELECT slot_name, active, GREATEST(age(xmin), 0), COALESCE(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, restart_lsn), 0)::bigint
FROM pg_replication_slots ORDER BY slot_name`)
	if err != nil {
		return err
	}
	defer rows.Close()
	n, bad := 0, 0
	for ; rows.Next(); n++ {
		var name string
		var active bool
		var age sql.NullInt64
		var behind int64
		if err := rows.Scan(&name, &active, &age, &behind); err != nil {
			return err
		}
		switch {
		case !active:
			bad++
			p.warn("replication slots", fmt.Sprintf("slot %q is used by nobody, and keeps %s of WAL", name, size(behind)), "the disk fills up, and if it holds a snapshot: "+whyOld,
				"start what uses it, or SELECT pg_drop_replication_slot("+pq.QuoteLiteral(name)+")")
		case age.Int64 > oldTransactions:
			bad++
			p.warn("replication slots", fmt.Sprintf("slot %q holds a snapshot that is %d transactions old", name, age.Int64), whyOld, "see why its consumer is behind, or turn off hot_standby_feedback on the standby")
		}
	}
	if bad == 0 && rows.Err() == nil {
		p.ok("replication slots", "%s, none of which holds anything back", counted(int64(n), 0, "slot", "slots"))
	}
	return rows.Err()
}

// oldTransactions is how many transactions old a snapshot may be of which no time is known.
const oldTransactions = 1_000_000

func (p *Postgres) lookAtPrepared(ctx context.Context, tx *sql.Tx) error {
	long := cmp.Or(p.Long, DefaultLong)
	var gid, owner, database string
	var age float64
	err := tx.QueryRowContext(ctx, `
SELECT gid, owner, database, extract(epoch FROM clock_timestamp() - prepared) FROM pg_prepared_xacts ORDER BY prepared LIMIT 1`).Scan(&gid, &owner, &database, &age)
	if err == sql.ErrNoRows {
		p.ok("prepared transactions", "none")
		return nil
	}
	if err != nil {
		return err
	}
	open := time.Duration(age * float64(time.Second))
	if open <= long {
		p.ok("prepared transactions", "the oldest is %s old", seconds(open))
		return nil
	}
	p.warn("prepared transactions", fmt.Sprintf("transaction %q of role %q in database %q was prepared %s ago and not ended", gid, owner, database, seconds(open)),
		"it keeps its locks over restarts; "+whyOld, "in that database: COMMIT PREPARED or ROLLBACK PREPARED "+pq.QuoteLiteral(gid))
	return nil
}
