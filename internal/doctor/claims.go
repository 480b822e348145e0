package doctor

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/oncemill/oncemill/internal/storedkey"
)

// lookAtDoubts counts effects of which nobody knows whether they happened.
func (p *Postgres) lookAtDoubts(ctx context.Context, tx *sql.Tx) error {
	n, err := p.count(ctx, tx, "claims", `settled_at IS NULL AND (in_doubt_since IS NOT NULL OR lease_until < now())`)
	if err != nil {
		return err
	}
	if n == 0 {
		p.ok("in doubt", "no effect is in doubt")
		return nil
	}
	p.warn("in doubt", counted(n, mostCounted, "effect is in doubt", "effects are in doubt"), "nobody knows whether the mail was sent or the card charged, and nothing tries it again until somebody says so",
		"list them with `oncemill claims --in-doubt`, ask the provider, and tell with `oncemill claims resolve`; or run a resolver (`oncemill resolve`)")
	return nil
}

// lookAtParkedMessages looks for messages that wait for a verdict.
func (p *Postgres) lookAtParkedMessages(ctx context.Context, tx *sql.Tx) error {
	n, err := p.count(ctx, tx, "parked", `true`)
	if err != nil {
		return err
	}
	if n == 0 {
		p.ok("parked messages", "no message waits for a verdict about its effect")
		return nil
	}
	var age float64
	if err := tx.QueryRowContext(ctx, `SELECT COALESCE(extract(epoch FROM now() - min(parked_at)), 0) FROM (SELECT parked_at FROM `+p.table("parked")+fmt.Sprintf(` LIMIT %d) AS parked`, mostCounted)).Scan(&age); err != nil {
		return err
	}
	p.warn("parked messages", fmt.Sprintf("%s for a verdict about the effect, the oldest for %s", counted(n, mostCounted, "message waits", "messages wait"), seconds(time.Duration(age*float64(time.Second)))),
		"they are acknowledged, so the broker sends them no more: they go back to the outbox if the effect turns out not to have happened", "resolve what is in doubt: `oncemill claims --in-doubt`")
	return nil
}

// lookAtFailing looks for messages whose handlers have failed and that were not handled
// since. There is no claim of them, so nothing else shows them.
func (p *Postgres) lookAtFailing(ctx context.Context, tx *sql.Tx) error {
	failing := p.table("handler_errors") + ` AS h WHERE NOT EXISTS (
	SELECT FROM ` + p.table("claims") + ` AS c WHERE c.consumer = h.consumer AND c.key = h.key AND c.settled_at IS NOT NULL)`
	var n int64
	if err := tx.QueryRowContext(ctx, fmt.Sprintf(`SELECT count(*) FROM (SELECT FROM %s LIMIT %d) AS counted`, failing, mostCounted+1)).Scan(&n); err != nil {
		return err
	}
	if n == 0 {
		p.ok("failing", "no handler keeps failing with a message")
		return nil
	}
	var consumer, key, text string
	var times int64
	err := tx.QueryRowContext(ctx, `SELECT consumer, key, errors, last_error FROM `+failing+` ORDER BY errors DESC, last_at DESC LIMIT 1`).Scan(&consumer, &key, &times, &text)
	if errors.Is(err, sql.ErrNoRows) { // it was handled meanwhile
		p.ok("failing", "no handler keeps failing with a message any more")
		return nil
	}
	if err != nil {
		return err
	}
	p.warn("failing", fmt.Sprintf("%s with an error so far; the worst is %q of consumer %q, after %s: %s", counted(n, mostCounted, "message has ended", "messages have ended"), storedkey.Shown(key), consumer, counted(times, 0, "error", "errors"), text),
		"each comes again and again until its handler takes it, or it is given up", "`"+p.command("claims list --failing")+"` lists them; do what the error says")
	return nil
}

// mostConsumers is how many consumers' claims are looked at.
const mostConsumers = 1000

// consumersSQL finds the consumers along the index of the claims' age, one by one. Claims
// of effects may be kept for ever: the claims of Once tell whether there is a purge.
const consumersSQL = `
WITH RECURSIVE consumers AS (
	(SELECT consumer FROM %[1]s WHERE settled_at IS NOT NULL ORDER BY consumer LIMIT 1)
	UNION ALL
	SELECT (SELECT c.consumer FROM %[1]s c WHERE c.settled_at IS NOT NULL AND c.consumer > consumers.consumer ORDER BY c.consumer LIMIT 1)
	FROM consumers WHERE consumers.consumer IS NOT NULL
), known AS (
	SELECT consumer FROM consumers WHERE consumer IS NOT NULL
	UNION SELECT consumer FROM %[2]s
	ORDER BY consumer LIMIT %[3]d
)
SELECT known.consumer, extract(epoch FROM now() - oldest.settled_at), COALESCE(oldest.token IS NOT NULL, false),
	extract(epoch FROM now() - w.purged_before)
FROM known
LEFT JOIN LATERAL (SELECT settled_at, token FROM %[1]s c WHERE c.consumer = known.consumer AND c.settled_at IS NOT NULL ORDER BY settled_at LIMIT 1) AS oldest ON true
LEFT JOIN %[2]s w ON w.consumer = known.consumer`

// A consumerAge is how far back a consumer's claims go.
type consumerAge struct {
	name    string
	oldest  time.Duration // of the oldest claim; 0: there is none
	guarded bool          // the oldest is that of an effect
	purged  time.Duration // how long ago what was purged last was settled; 0: nothing was
}

func (p *Postgres) consumers(ctx context.Context, tx *sql.Tx) (all []consumerAge, err error) {
	rows, err := tx.QueryContext(ctx, fmt.Sprintf(consumersSQL, p.table("claims"), p.table("watermarks"), mostConsumers))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var c consumerAge
		var oldest, purged sql.NullFloat64
		if err := rows.Scan(&c.name, &oldest, &c.guarded, &purged); err != nil {
			return nil, err
		}
		c.oldest, c.purged = time.Duration(oldest.Float64*float64(time.Second)), time.Duration(purged.Float64*float64(time.Second))
		all = append(all, c)
	}
	return all, rows.Err()
}

// purgeLate is how far beyond Retention claims may be: the margin of clocks, and as much
// as a purge that takes its time is behind.
const purgeLate = time.Hour

func (p *Postgres) lookAtRetention(ctx context.Context, tx *sql.Tx) error {
	all, err := p.consumers(ctx, tx)
	if err != nil {
		return err
	}
	var shorter, unpurged []string
	for _, c := range all {
		if c.purged > 0 && c.purged < p.brief.Kept-clockMargin {
			shorter = append(shorter, fmt.Sprintf("%q (%s)", c.name, seconds(c.purged)))
			p.brief.Kept, p.brief.Consumer = c.purged, c.name
		}
		if !c.guarded && c.oldest > p.Retention+clockMargin+purgeLate {
			unpurged = append(unpurged, fmt.Sprintf("%q (%s)", c.name, seconds(c.oldest)))
		}
	}
	switch {
	case len(unpurged) > 0:
		p.warn("retention", fmt.Sprintf("claims older than %s are there, of %s", seconds(p.Retention), few(unpurged)), "nothing purges them, so the table grows; or their Inbox.Retention is longer than --retention",
			"have one process at least call Inbox.Run, with these consumers; or give --retention what your programs have")
	case len(shorter) > 0:
		p.warn("retention", fmt.Sprintf("claims of %s were purged that are younger than %s", few(shorter), seconds(p.Retention)),
			"Inbox.Retention is shorter there than --retention. Messages from before the purge that are delivered again are refused with ErrTooOld and become dead letters",
			"give --retention what your programs have, or keep claims for as long as the broker keeps messages (docs/retention.md)")
	default:
		p.ok("retention", "%s, none with claims older than %s", counted(int64(len(all)), mostConsumers, "consumer", "consumers"), seconds(p.Retention))
	}
	return nil
}
