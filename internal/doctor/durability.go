package doctor

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/lib/pq"

	"github.com/oncemill/oncemill/internal/durable"
)

// tell reports warnings that programs log too when they start.
func (f *findings) tell(warnings []durable.Warning) {
	for _, w := range warnings {
		level := Warn
		if w.Grave {
			level = Fail
		}
		f.add(level, w.Check, w.Found, w.Why, w.Do)
	}
}

// lookAtDurability looks at whether what is committed, and so acknowledged, survives a
// crash of the server.
func (p *Postgres) lookAtDurability(ctx context.Context, tx *sql.Tx) error {
	found, err := durable.Look(ctx, tx)
	if err != nil {
		return err
	}
	warnings := found.Disk()
	p.tell(warnings)
	if len(warnings) == 0 {
		p.ok("durability", "what is committed is on the disk (fsync, full_page_writes and synchronous_commit are on)")
	}
	return nil
}

// lookAtStandbys looks at whether what is committed survives the loss of the server.
func (p *Postgres) lookAtStandbys(ctx context.Context, tx *sql.Tx) error {
	found, err := durable.Look(ctx, tx)
	if err != nil {
		return err
	}
	warnings := found.Copies()
	p.tell(warnings)
	switch all := counted(int64(found.Standbys), 0, "standby", "standbys"); {
	case found.Names != "" && found.Hidden > 0:
		p.skip("standbys", fmt.Sprintf("%s, of which role %q may not know more", all, p.who), "GRANT pg_read_all_stats TO "+pq.QuoteIdentifier(p.who))
	case found.Names != "" && found.Synchronous == 0:
		p.warn("standbys", "synchronous_standby_names is set, but no synchronous standby is connected", "every commit waits until there is one", "start the standby, or take it out of synchronous_standby_names")
	case len(warnings) > 0:
	case found.Standbys > 0:
		p.ok("standbys", "%d attached, %d of them synchronous", found.Standbys, found.Synchronous)
	default:
		p.ok("standbys", "none: what is lost with this server's disk comes back from its backup only")
	}
	return nil
}
