package doctor

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/lib/pq"
)

// lookAtDurability looks at whether what is committed, and so acknowledged, survives a
// crash of the server.
func (p *Postgres) lookAtDurability(ctx context.Context, tx *sql.Tx) error {
	bad := false
	for _, s := range []struct{ name, why, do string }{
		{"fsync", "a crash of the machine can lose or destroy any part of the database, claims and all", "set fsync = on in postgresql.conf, and make the cluster anew if it has crashed since"},
		{"full_page_writes", "a crash in the middle of a write leaves torn pages, which nothing repairs", "set full_page_writes = on in postgresql.conf"},
		{"synchronous_commit", "a commit returns before it is on the disk. The message is acknowledged then, and after a crash of the server its claim, its rows and what it published are gone: it is lost, and nobody sends it again",
			"ALTER ROLE " + pq.QuoteIdentifier(p.who) + " SET synchronous_commit = on; and see that no connection string sets it (Oncemill's purge sets it off for itself, where it does no harm)"},
	} {
		value, err := setting(ctx, tx, s.name)
		if err != nil {
			return err
		}
		if value == "off" {
			bad = true
			p.fail("durability", s.name+" is off", s.why, s.do)
		}
	}
	if !bad {
		p.ok("durability", "what is committed is on the disk (fsync, full_page_writes and synchronous_commit are on)")
	}
	return nil
}

// lookAtStandbys looks at whether what is committed survives the loss of the server.
func (p *Postgres) lookAtStandbys(ctx context.Context, tx *sql.Tx) error {
	names, err := setting(ctx, tx, "synchronous_standby_names")
	if err != nil {
		return err
	}
	commit, err := setting(ctx, tx, "synchronous_commit")
	if err != nil {
		return err
	}
	var all, synchronous, hidden int
	err = tx.QueryRowContext(ctx, `
SELECT count(*), count(*) FILTER (WHERE sync_state IN ('sync', 'quorum')), count(*) FILTER (WHERE sync_state IS NULL)
FROM pg_stat_replication`).Scan(&all, &synchronous, &hidden)
	if err != nil {
		return err
	}
	switch {
	case hidden > 0:
		p.skip("standbys", fmt.Sprintf("%s, of which role %q may not know more", counted(int64(all), 0, "standby", "standbys"), p.who), "GRANT pg_read_all_stats TO "+pq.QuoteIdentifier(p.who))
	case names != "" && commit == "local":
		p.warn("standbys", "synchronous_standby_names is set, but synchronous_commit is local", "commits do not wait for the standby: after a failover, acknowledged messages can be lost with what they did",
			"ALTER ROLE "+pq.QuoteIdentifier(p.who)+" SET synchronous_commit = on")
	case names != "" && synchronous == 0:
		p.warn("standbys", "synchronous_standby_names is set, but no synchronous standby is connected", "every commit waits until there is one", "start the standby, or take it out of synchronous_standby_names")
	case names == "" && all > 0:
		p.warn("standbys", counted(int64(all), 0, "standby is", "standbys are")+" attached, all of them asynchronous",
			"one that is promoted may lack what was committed last: its messages are acknowledged, so they are lost with their claims and rows, and a claim that is missing lets an effect happen again",
			"name one in synchronous_standby_names, or accept that after a failover the last messages are to be compared by hand")
	case all > 0:
		p.ok("standbys", "%d attached, %d of them synchronous", all, synchronous)
	default:
		p.ok("standbys", "none: what is lost with this server's disk comes back from its backup only")
	}
	return nil
}
