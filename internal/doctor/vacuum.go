package doctor

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
)

// manyDead is how many dead rows are worth a warning, where they are more than the live.
// The outbox is nearly empty and gets about as many dead rows as messages in a minute.
const manyDead = 200_000

// lookAtVacuum looks at whether autovacuum keeps up.
func (p *Postgres) lookAtVacuum(ctx context.Context, tx *sql.Tx) error {
	var off bool
	err := tx.QueryRowContext(ctx, `SELECT current_setting('autovacuum') = 'off' OR current_setting('track_counts') = 'off'`).Scan(&off)
	if err != nil {
		return err
	}
	why := "the tables and indexes grow without end, and every statement gets slower"
	if off {
		p.warn("vacuum", "autovacuum or track_counts is off", why, "set autovacuum = on and track_counts = on in postgresql.conf")
		return nil
	}
	rows, err := tx.QueryContext(ctx, `
SELECT s.relname, s.n_live_tup, s.n_dead_tup, COALESCE(to_char(GREATEST(s.last_autovacuum, s.last_vacuum), 'YYYY-MM-DD HH24:MI TZ'), 'never'),
	COALESCE(array_to_string(c.reloptions, ',') LIKE '%autovacuum_enabled=false%', false)
FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid WHERE s.schemaname = `+p.schemaLiteral()+` ORDER BY s.relname`)
	if err != nil {
		return err
	}
	defer rows.Close()
	bad := false
	for rows.Next() {
		var name, last string
		var live, dead int64
		var disabled bool
		if err := rows.Scan(&name, &live, &dead, &last, &disabled); err != nil {
			return err
		}
		switch {
		case disabled:
			bad = true
			p.warn("vacuum", "autovacuum is disabled for "+name, why, "ALTER TABLE "+p.table(name)+" RESET (autovacuum_enabled)")
		case dead > manyDead && dead > live:
			bad = true
			p.warn("vacuum", fmt.Sprintf("%s has %d dead rows beside %d live ones, and was vacuumed last: %s", name, dead, live, last), why+"; an old snapshot keeps vacuum from it, or autovacuum has not come to it",
				"see old snapshots above, then VACUUM "+p.table(name)+"; and let autovacuum come more often (autovacuum_naptime, autovacuum_max_workers)")
		}
	}
	if !bad && rows.Err() == nil {
		p.ok("vacuum", "autovacuum keeps up with the tables")
	}
	return rows.Err()
}

func (p *Postgres) lookAtSizes(ctx context.Context, tx *sql.Tx) error {
	rows, err := tx.QueryContext(ctx, `
SELECT c.relname, pg_total_relation_size(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = `+p.schemaLiteral()+` AND c.relkind = 'r' AND c.relname IN ('claims', 'events', 'outbox', 'parked', 'scheduled', 'published') ORDER BY c.relname`)
	if err != nil {
		return err
	}
	defer rows.Close()
	var sizes []string
	for rows.Next() {
		var name string
		var bytes int64
		if err := rows.Scan(&name, &bytes); err != nil {
			return err
		}
		sizes = append(sizes, name+" "+size(bytes))
	}
	if rows.Err() == nil {
		p.ok("sizes", "with their indexes: %s", strings.Join(sizes, ", "))
	}
	return rows.Err()
}

// size is a number of bytes for people.
func size(bytes int64) string {
	units := []string{"bytes", "kB", "MB", "GB", "TB"}
	value, unit := float64(bytes), 0
	for value >= 1024 && unit < len(units)-1 {
		value, unit = value/1024, unit+1
	}
	if unit == 0 {
		return fmt.Sprintf("%d bytes", bytes)
	}
	return fmt.Sprintf("%.1f %s", value, units[unit])
}
