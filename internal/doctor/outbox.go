package doctor

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"strings"
	"time"

	"github.com/lib/pq"

	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/schema"
)

// mostCounted is where counting ends: what is longer is long enough.
const mostCounted = 100_000

// count counts the rows of a table, up to mostCounted and one.
func (p *Postgres) count(ctx context.Context, tx *sql.Tx, table, where string) (n int64, err error) {
	err = tx.QueryRowContext(ctx, fmt.Sprintf(`SELECT count(*) FROM (SELECT FROM %s WHERE %s LIMIT %d) AS counted`, p.table(table), where, mostCounted+1)).Scan(&n)
	return n, err
}

// isDue is what a relay should have taken by now.
const isDue = `parked_at IS NULL AND (not_before IS NULL OR not_before <= now())`

func (p *Postgres) lookAtBacklog(ctx context.Context, tx *sql.Tx) error {
	n, err := p.count(ctx, tx, "outbox", isDue)
	if err != nil {
		return err
	}
	if n == 0 {
		p.ok("backlog", "no message waits in the outbox")
		return nil
	}
	var topic string
	var age float64
	err = tx.QueryRowContext(ctx, `
SELECT topic, extract(epoch FROM now() - LEAST(GREATEST(created_at, not_before, now() - interval '100 years'), now())) FROM `+p.table("outbox")+` WHERE `+isDue+` ORDER BY id LIMIT 1`).Scan(&topic, &age)
	if err == sql.ErrNoRows { // a relay was quicker
		p.ok("backlog", "no message waits in the outbox any more")
		return nil
	}
	if err != nil {
		return err
	}
	waits := time.Duration(age * float64(time.Second))
	found := fmt.Sprintf("%s in the outbox, the oldest for %s, to topic %q", counted(n, mostCounted, "message waits", "messages wait"), seconds(waits), topic)
	if waits > cmp.Or(p.Late, DefaultLate) {
		p.warn("backlog", found, "no relay runs, the broker does not take the messages, the relays are too slow, or they wait behind one with the same ordering key that is deferred or parked: what they should cause has not happened yet",
			"see that `oncemill relay` runs and what its log and /readyz say, that the topic exists on the broker, and what is deferred or parked")
		return nil
	}
	p.ok("backlog", "%s", found)
	return nil
}

func (p *Postgres) lookAtDeferred(ctx context.Context, tx *sql.Tx) error {
	n, err := p.count(ctx, tx, "outbox", `parked_at IS NULL AND attempts > 0`)
	if err != nil {
		return err
	}
	if n == 0 {
		p.ok("deferred", "the broker has refused no message that waits")
		return nil
	}
	var id int64
	var attempts int
	var topic, text string
	err = tx.QueryRowContext(ctx, `
SELECT id, attempts, topic, COALESCE(last_error, '') FROM `+p.table("outbox")+` WHERE parked_at IS NULL AND attempts > 0 ORDER BY id LIMIT 1`).
		Scan(&id, &attempts, &topic, &text)
	if err == sql.ErrNoRows {
		return nil
	}
	if err != nil {
		return err
	}
	p.warn("deferred", fmt.Sprintf("%s deferred after failures; the oldest is %d to topic %q, after %s: %s",
		counted(n, mostCounted, "message is", "messages are"), id, topic, counted(int64(attempts), 0, "attempt", "attempts"), text),
		"the relay tries each again, at last once a minute; those behind it with the same ordering key wait", "do what the error says: most often the stream or topic is missing, or the user may not publish to it; `"+p.command("outbox retry --deferred --all")+"` does not wait for the next attempt")
	return nil
}

func (p *Postgres) lookAtParkedRows(ctx context.Context, tx *sql.Tx) error {
	n, err := p.count(ctx, tx, "outbox", `parked_at IS NOT NULL`)
	if err != nil {
		return err
	}
	if n == 0 {
		p.ok("parked rows", "no message in the outbox is given up")
		return nil
	}
	var id int64
	var topic, text string
	err = tx.QueryRowContext(ctx, `SELECT id, topic, COALESCE(last_error, '') FROM `+p.table("outbox")+` WHERE parked_at IS NOT NULL ORDER BY id LIMIT 1`).Scan(&id, &topic, &text)
	if err != nil {
		return err
	}
	p.warn("parked rows", fmt.Sprintf("%s given up; the oldest is %d to topic %q: %s", counted(n, mostCounted, "message in the outbox is", "messages in the outbox are"), id, topic, text),
		"the broker will not take them as they are, and the relay does not try them again; those behind them with the same ordering key wait",
		fmt.Sprintf("`%s` shows all; remove the cause, then have it sent with `%s --id %d`, or delete it with `%s --id %d --yes`", p.command("outbox list"), p.command("outbox retry"), id, p.command("outbox drop"), id))
	return nil
}

func (p *Postgres) lookAtScheduled(ctx context.Context, tx *sql.Tx) error {
	if p.version < 6 {
		p.skip("scheduled", "messages can be scheduled from schema version 6 on", "run oncemill migrate")
		return nil
	}
	n, err := p.count(ctx, tx, "scheduled", `true`)
	if err != nil {
		return err
	}
	late := cmp.Or(p.Late, DefaultLate)
	overdue, err := p.count(ctx, tx, "scheduled", fmt.Sprintf(`deliver_after < now() - %d * interval '1 microsecond'`, late.Microseconds()))
	if err != nil {
		return err
	}
	switch {
	case overdue > 0:
		p.warn("scheduled", counted(overdue, mostCounted, "scheduled message is", "scheduled messages are")+" overdue by more than "+seconds(late), "no relay has moved them to the outbox", "see that `oncemill relay` of this version runs and what its log says")
	case n > 0:
		p.ok("scheduled", "%s for later", counted(n, mostCounted, "message is scheduled", "messages are scheduled"))
	default:
		p.ok("scheduled", "no message is scheduled")
	}
	return nil
}

// lookForRelay looks for the session in which a relay listens. It stays on its LISTEN.
func (p *Postgres) lookForRelay(ctx context.Context, tx *sql.Tx) error {
	var listening, hidden int
	err := tx.QueryRowContext(ctx, `
SELECT count(*) FILTER (WHERE query ILIKE 'LISTEN%' AND strpos(query, `+pq.QuoteLiteral(outbox.Channel(p.Schema))+`) > 0),
	count(*) FILTER (WHERE NOT pg_has_role(usesysid, 'USAGE') AND NOT pg_has_role('pg_read_all_stats', 'USAGE'))
FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`).Scan(&listening, &hidden)
	if err != nil {
		return err
	}
	switch {
	case listening > 0:
		p.ok("relay", "%s for new messages", counted(int64(listening), 0, "relay listens", "relays listen"))
	case hidden > 0:
		p.skip("relay", fmt.Sprintf("whether a relay listens is not to be seen: %s of other roles", counted(int64(hidden), 0, "session is", "sessions are")), "GRANT pg_read_all_stats TO "+pq.QuoteIdentifier(p.who))
	default:
		p.warn("relay", "no relay listens for new messages", "without a relay what is published stays in the outbox. One that connects through a pooler in transaction mode, or has no ListenURL, cannot listen: it only looks now and then",
			"run `oncemill relay` beside the workers, or outbox.Relay within them, with a connection that leads to Postgres itself, or one for LISTEN alone (--listen-url, Relay.ListenURL)")
	}
	return nil
}

// mostTopics is how many topics are looked at on the broker.
const mostTopics = 50

// readTopics reads where the outbox has sent to lately, for the checks of the broker. Rows
// are deleted once they are published; those that wait, and those that were kept, tell.
func (p *Postgres) readTopics(ctx context.Context, tx *sql.Tx) error {
	tables := []string{
		`SELECT topic FROM (SELECT topic FROM ` + p.table("outbox") + ` ORDER BY id DESC LIMIT 10000) AS waiting`,
		`SELECT topic FROM (SELECT topic FROM ` + p.table("outbox") + ` ORDER BY id LIMIT 10000) AS oldest`,
	}
	if p.version >= 6 {
		tables = append(tables, `SELECT topic FROM (SELECT topic FROM `+p.table("scheduled")+` ORDER BY deliver_after LIMIT 10000) AS scheduled`)
		var may bool
		if err := tx.QueryRowContext(ctx, `SELECT has_table_privilege(`+pq.QuoteLiteral(schema.Quote(p.Schema)+".published")+`, 'SELECT')`).Scan(&may); err != nil {
			return err
		}
		if may {
			tables = append(tables, `SELECT topic FROM (SELECT topic FROM `+p.table("published")+` ORDER BY published_at DESC LIMIT 10000) AS published`)
		}
	}
	rows, err := tx.QueryContext(ctx, fmt.Sprintf(`SELECT topic FROM (%s) AS lately GROUP BY topic ORDER BY topic LIMIT %d`, strings.Join(tables, ` UNION ALL `), mostTopics))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var topic string
		if err := rows.Scan(&topic); err != nil {
			return err
		}
		p.brief.Topics = append(p.brief.Topics, topic)
	}
	return rows.Err()
}
