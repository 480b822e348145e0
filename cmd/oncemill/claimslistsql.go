package main

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/storedkey"
	"github.com/oncemill/oncemill/schema"
)

// A claimsReader reads the table claims.
type claimsReader struct {
	db     *sql.DB
	schema string // quoted
}

func newClaimsReader(in *oncemill.Inbox) claimsReader {
	return claimsReader{in.DB, schema.Quote(in.Schema)}
}

// byIndexSQL leaves sorts within an index's order, of rows of one time.
const byIndexSQL = `SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true), set_config('enable_sort', 'off', true)`

func (r claimsReader) in(query string) string {
	return strings.ReplaceAll(query, "{schema}", r.schema)
}

// read runs fn in a transaction that only reads, all of it at one moment, and in which the
// planner takes an index and its order, whatever it thinks of the table.
func (r claimsReader) read(ctx context.Context, fn func(tx *sql.Tx) error) error {
	tx, err := r.db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // it has only read
	if _, err := tx.ExecContext(ctx, byIndexSQL); err != nil {
		return err
	}
	return fn(tx)
}

const listedColumns = `key, COALESCE(outcome, CASE WHEN in_doubt_since IS NOT NULL OR lease_until < clock_timestamp() THEN 'in doubt' ELSE 'in flight' END),
	settled_at, claimed_at, lease_until, CASE WHEN settled_at IS NULL THEN COALESCE(in_doubt_since, lease_until) END, COALESCE(token, 0), COALESCE(attempts, 0),
	COALESCE(action, ''), COALESCE(agent, ''), COALESCE(amount::text, ''), COALESCE(currency, ''), COALESCE(reason, ''), fingerprint`

func scanListed(consumer string, scan func(...any) error, more ...any) (c listedClaim, err error) {
	var settled, claimed, lease, doubt sql.NullTime
	err = scan(append([]any{&c.stored, &c.State, &settled, &claimed, &lease, &doubt, &c.Token, &c.Attempts,
		&c.Action, &c.Agent, &c.Amount, &c.Currency, &c.Reason, (*[]byte)(&c.Fingerprint)}, more...)...)
	c.Consumer, c.Key = consumer, storedkey.Shown(c.stored)
	c.SettledAt, c.FirstClaimed, c.LeaseUntil = settled.Time, claimed.Time, lease.Time
	if c.State == stateInDoubt {
		c.InDoubtSince = doubt.Time
	}
	return c, err
}

// These read a page along an index each: claims_unsettled, claims_by_age, and the primary
// key. $1 is the consumer, $2 how many microseconds back, $3 the outcome and $4 the most rows; the page
// begins behind $5, a time or the stored key, and for those by time behind the key $6. Where
// many claims have one time, as those of a batch have, these are sorted for each page.
const (
	unsettledSQL = `
SELECT ` + listedColumns + ` FROM {schema}.claims
WHERE consumer = $1 AND settled_at IS NULL AND $3 = ANY (ARRAY['any', 'unsettled'])
	AND claimed_at >= COALESCE(now() - $2::bigint * interval '1 microsecond', '-infinity')
	AND lease_until <= COALESCE($5::timestamptz, 'infinity') AND (lease_until, key) < (COALESCE($5::timestamptz, 'infinity'), $6)
ORDER BY lease_until DESC, key DESC LIMIT $4`

	settledSQL = `
SELECT ` + listedColumns + ` FROM {schema}.claims
WHERE consumer = $1 AND settled_at IS NOT NULL AND $3 = ANY (ARRAY['any', outcome])
	AND settled_at >= COALESCE(now() - $2::bigint * interval '1 microsecond', '-infinity')
	AND settled_at <= COALESCE($5::timestamptz, 'infinity') AND (settled_at, key) < (COALESCE($5::timestamptz, 'infinity'), $6)
ORDER BY settled_at DESC, key DESC LIMIT $4`

	// Within $6 and $7, the range of a prefix.
	byKeySQL = `
SELECT ` + listedColumns + ` FROM {schema}.claims
WHERE consumer = $1 AND $3 = ANY (ARRAY['any', COALESCE(outcome, 'unsettled')])
	AND COALESCE(settled_at, claimed_at) >= COALESCE(now() - $2::bigint * interval '1 microsecond', '-infinity')
	AND key > $5 AND key >= $6 AND {below}
ORDER BY key LIMIT $4`
)

// A claimsLister lists claims until there were enough.
type claimsLister struct {
	claimsReader
	prefix  string
	outcome string        // "any", "unsettled" or an Outcome
	since   time.Duration // 0: all
	left    int           // how many more
	print   func([]listedClaim) error
}

// listAll lists the claims of all consumers, in the order of their names. Those that are
// not settled come first, of all of them: else the many of one would hide what is in doubt
// in another.
func (l *claimsLister) listAll(ctx context.Context) error {
	if l.prefix != "" {
		return l.eachConsumer(ctx, l.list)
	}
	if err := l.eachConsumer(ctx, l.listUnsettled); err != nil {
		return err
	}
	return l.eachConsumer(ctx, l.listSettled)
}

// eachConsumer runs list for the consumers until there were enough claims.
func (l *claimsLister) eachConsumer(ctx context.Context, list func(ctx context.Context, consumer string) error) error {
	for consumer, after := "", ""; l.left > 0; after = consumer {
		var next sql.NullString
		err := l.read(ctx, func(tx *sql.Tx) error {
			return tx.QueryRowContext(ctx, l.in(`SELECT min(consumer) FROM {schema}.claims WHERE consumer > $1`), after).Scan(&next)
		})
		if err != nil {
			return fmt.Errorf("look for the consumers: %w", err)
		}
		if !next.Valid {
			return nil
		}
		consumer = next.String
		if err := list(ctx, consumer); err != nil {
			return err
		}
	}
	return nil
}

// list lists the claims of a consumer.
func (l *claimsLister) list(ctx context.Context, consumer string) (err error) {
	if l.prefix != "" {
		for _, r := range storedkey.Prefixed(l.prefix) {
			if err == nil {
				err = l.listRange(ctx, consumer, r)
			}
		}
		return err
	}
	if err := l.listUnsettled(ctx, consumer); err != nil {
		return err
	}
	return l.listSettled(ctx, consumer)
}

func (l *claimsLister) listUnsettled(ctx context.Context, consumer string) error {
	if l.outcome != "any" && l.outcome != "unsettled" {
		return nil
	}
	return l.listByTime(ctx, consumer, unsettledSQL, func(c *listedClaim) time.Time { return c.LeaseUntil })
}

func (l *claimsLister) listSettled(ctx context.Context, consumer string) error {
	if l.outcome == "unsettled" {
		return nil
	}
	return l.listByTime(ctx, consumer, settledSQL, func(c *listedClaim) time.Time { return c.SettledAt })
}

func (l *claimsLister) listByTime(ctx context.Context, consumer, query string, at func(*listedClaim) time.Time) error {
	var from sql.NullTime
	key := ""
	return l.pages(func(most int) ([]listedClaim, error) {
		claims, err := l.page(ctx, consumer, query, sinceArg(l.since), l.outcome, most, from, key)
		if n := len(claims); n > 0 {
			from, key = sql.NullTime{Time: at(&claims[n-1]), Valid: true}, claims[n-1].stored
		}
		return claims, err
	})
}

// listRange lists what begins with the prefix.
func (l *claimsLister) listRange(ctx context.Context, consumer string, r storedkey.Range) error {
	query, args := strings.Replace(byKeySQL, "{below}", "true", 1), []any{r.From}
	if r.To != "" {
		query, args = strings.Replace(byKeySQL, "{below}", "key < $7", 1), append(args, r.To)
	}
	after := ""
	return l.pages(func(most int) ([]listedClaim, error) {
		claims, err := l.page(ctx, consumer, query, append([]any{sinceArg(l.since), l.outcome, most, after}, args...)...)
		if n := len(claims); n > 0 {
			after = claims[n-1].stored
		}
		return claims, err
	})
}

// pages has pages be read until there are no more, or enough.
func (l *claimsLister) pages(read func(most int) ([]listedClaim, error)) error {
	for l.left > 0 {
		most := min(page, l.left)
		claims, err := read(most)
		if err != nil {
			return fmt.Errorf("list claims: %w", err)
		}
		full := len(claims) == most
		claims = l.wanted(claims)
		l.left -= len(claims)
		if err := l.print(claims); err != nil || !full {
			return err
		}
	}
	return nil
}

// wanted leaves out what stands in the table only for what begins with the prefix.
func (l *claimsLister) wanted(claims []listedClaim) (wanted []listedClaim) {
	for _, c := range claims {
		if strings.HasPrefix(c.Key, l.prefix) {
			wanted = append(wanted, c)
		}
	}
	return wanted
}

// sinceArg is how far back to list, in microseconds, or NULL for all.
func sinceArg(since time.Duration) sql.NullInt64 {
	return sql.NullInt64{Int64: since.Microseconds(), Valid: since > 0}
}

// page reads the claims that a query finds.
func (l *claimsLister) page(ctx context.Context, consumer, query string, args ...any) (claims []listedClaim, err error) {
	err = l.read(ctx, func(tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, l.in(query), append([]any{consumer}, args...)...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			c, err := scanListed(consumer, rows.Scan)
			if err != nil {
				return err
			}
			claims = append(claims, c)
		}
		return rows.Err()
	})
	return claims, err
}
