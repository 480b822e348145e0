package doctor

import (
	"context"
	"database/sql"
	"fmt"
	"net"
	"time"

	"github.com/lib/pq"

	"github.com/oncemill/oncemill/internal/durable"
)

// The versions of Postgres that Oncemill is tested on, by their server_version_num
// without the minor version.
const (
	leastTested, mostTested = 15, 18
	leastKnown              = 13 // has gen_random_uuid
)

func (p *Postgres) lookAtSession(ctx context.Context, tx *sql.Tx) error {
	var secure bool
	var protocol string
	var superuser bool
	err := tx.QueryRowContext(ctx, `
SELECT current_user, COALESCE((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false),
	COALESCE((SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()), ''), (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)`).
		Scan(&p.who, &secure, &protocol, &superuser)
	if err != nil {
		return err
	}
	switch {
	case secure:
		p.ok("TLS", "the connection is encrypted (%s), sslmode=%s", protocol, p.config.SSLMode)
	case isLocal(p.config.Host):
		p.ok("TLS", "the connection is not encrypted, and stays on this machine")
	default:
		p.warn("TLS", "the connection is not encrypted and leaves this machine", "whoever is on the network between reads all messages, and can change them",
			"set up TLS in Postgres (ssl = on) and connect with sslmode=verify-full")
	}
	if superuser && p.Role != "" && p.Role != Migrate {
		p.warn("superuser", fmt.Sprintf("role %q is a superuser", p.who), "a fault in a program, or a stolen password, reaches the whole server",
			"use a role of its own with the grants of docs/operating.md")
	}
	return nil
}

// isLocal reports whether a host is this machine.
func isLocal(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || isSocket(host) || ip != nil && ip.IsLoopback()
}

func (p *Postgres) lookAtVersion(ctx context.Context, tx *sql.Tx) error {
	var number int
	var text string
	err := tx.QueryRowContext(ctx, `SELECT current_setting('server_version_num')::integer, current_setting('server_version')`).Scan(&number, &text)
	if err != nil {
		return err
	}
	tested := fmt.Sprintf("Oncemill is tested on %d to %d", leastTested, mostTested)
	switch major := number / 10000; {
	case major < leastKnown:
		p.fail("version", "Postgres "+text, tested, "upgrade the server")
	case major < leastTested || major > mostTested:
		p.warn("version", "Postgres "+text, tested, "use one of these")
	default:
		p.ok("version", "Postgres %s", text)
	}
	return nil
}

func (p *Postgres) lookAtPrimary(ctx context.Context, tx *sql.Tx) error {
	var replica bool
	if err := tx.QueryRowContext(ctx, `SELECT pg_is_in_recovery()`).Scan(&replica); err != nil {
		return err
	}
	if replica {
		p.fail("primary", "this server is a replica", "it takes no writes: nothing can be claimed, published or relayed",
			"connect to the primary; with several hosts in the URL, add target_session_attrs=read-write")
		return nil
	}
	p.ok("primary", "this server is a primary")
	return nil
}

func (p *Postgres) lookAtWritable(ctx context.Context, tx *sql.Tx) error {
	value, err := setting(ctx, tx, "default_transaction_read_only")
	if err != nil {
		return err
	}
	if value == "on" {
		p.fail("writable", "transactions begin read-only (default_transaction_read_only = on)", "nothing can be claimed, published or relayed",
			"ALTER ROLE "+pq.QuoteIdentifier(p.who)+" SET default_transaction_read_only = off; or for the database, where it is set there")
		return nil
	}
	p.ok("writable", "transactions may write")
	return nil
}

func (p *Postgres) lookAtEncoding(ctx context.Context, tx *sql.Tx) error {
	var encoding string
	if err := tx.QueryRowContext(ctx, `SELECT current_setting('server_encoding')`).Scan(&encoding); err != nil {
		return err
	}
	if encoding != "UTF8" {
		p.fail("encoding", "the database's encoding is "+encoding, "it cannot hold every key and header", "use a database created with ENCODING 'UTF8'")
		return nil
	}
	p.ok("encoding", "the database's encoding is UTF8")
	return nil
}

func (p *Postgres) lookAtIsolation(ctx context.Context, tx *sql.Tx) error {
	level, err := setting(ctx, tx, "default_transaction_isolation")
	if err != nil {
		return err
	}
	if level != "read committed" {
		p.warn("isolation", "default_transaction_isolation is "+level,
			"Oncemill begins its own transactions at read committed all the same, but single statements and the transactions of other programs that publish can fail with 40001, and claims of one key with them",
			"ALTER ROLE "+pq.QuoteIdentifier(p.who)+" SET default_transaction_isolation = 'read committed'")
		return nil
	}
	p.ok("isolation", "transactions are read committed")
	return nil
}

// lookAtConnections warns before there are none left.
func (p *Postgres) lookAtConnections(ctx context.Context, tx *sql.Tx) error {
	var most, reserved, used, mine int
	var limit int
	err := tx.QueryRowContext(ctx, `
SELECT current_setting('max_connections')::integer,
	current_setting('superuser_reserved_connections')::integer + COALESCE(current_setting('reserved_connections', true), '0')::integer,
	(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' OR usesysid IS NOT NULL AND backend_type IS NULL),
	(SELECT count(*) FROM pg_stat_activity WHERE usename = current_user),
	(SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user)`).Scan(&most, &reserved, &used, &mine, &limit)
	if err != nil {
		return err
	}
	free := most - reserved - used
	why := "a pool that gets no connection fails: messages are nacked, and the relay stands still"
	do := "give every pool its limit (SetMaxOpenConns), so that their sum stays below max_connections; raise max_connections, or put a pooler in front of programs that do not need LISTEN"
	switch {
	case limit >= 0 && mine*5 >= limit*4:
		p.warn("connections", fmt.Sprintf("role %q has %d connections of %d that it may have", p.who, mine, limit), why, "ALTER ROLE "+pq.QuoteIdentifier(p.who)+" CONNECTION LIMIT ...")
	case used*5 >= (most-reserved)*4:
		p.warn("connections", fmt.Sprintf("%d connections are in use and %d free, of max_connections = %d with %d reserved", used, max(free, 0), most, reserved), why, do)
	default:
		p.ok("connections", "%d of %d in use", used, most-reserved)
	}
	return nil
}

// Clocks further apart than clockFar are worth a warning, and those further than
// clockMargin do harm: Oncemill compares the broker's times with Postgres's, and allows
// for that much.
const (
	clockFar    = 10 * time.Second
	clockMargin = 5 * time.Minute
)

func (p *Postgres) lookAtClock(ctx context.Context, tx *sql.Tx) error {
	now := p.Clock
	if now == nil {
		now = time.Now
	}
	before, begun := now(), time.Now()
	var micros int64
	if err := tx.QueryRowContext(ctx, `SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint`).Scan(&micros); err != nil {
		return err
	}
	took := time.Since(begun)
	apart := time.UnixMicro(micros).Sub(before.Add(took / 2))
	found := fmt.Sprintf("the server's clock and this machine's are %v apart", apart.Abs().Round(time.Millisecond))
	why := "times of messages are compared with the server's clock, with 5 minutes of margin: beyond it, a message can be taken for older than its purged claims, or run again when it is"
	switch {
	case apart.Abs() > clockMargin:
		p.fail("clock", found, why, "set both by NTP (chrony, systemd-timesyncd)")
	case apart.Abs() > clockFar:
		p.warn("clock", found, why, "set both by NTP (chrony, systemd-timesyncd)")
	case apart.Abs() <= took:
		p.ok("clock", "the server's clock and this machine's agree")
	default:
		p.ok("clock", "%s", found)
	}
	return nil
}

// Timeouts of the role or the database that cut what Oncemill does.
const (
	shortStatement   = 10 * time.Second
	shortLock        = time.Second
	shortTransaction = 2 * time.Minute
	shortIdle        = 5 * time.Second
)

func (p *Postgres) lookAtTimeouts(ctx context.Context, tx *sql.Tx) error {
	bad := false
	for _, t := range []struct {
		name string
		less time.Duration // is too short
		why  string
	}{
		{"statement_timeout", shortStatement, "claims wait up to LockWait (2 seconds) for another delivery of their key, and purges and the relay's statements can take longer on a busy server: what is cut is nacked and comes again"},
		{"lock_timeout", shortLock, "a claim sets its own, but handlers' statements, settlements and migrations give up when they wait for a row"},
		{"idle_in_transaction_session_timeout", shortIdle, "Oncemill's transactions set their own (Inbox.IdleTimeout), but programs that publish in transactions of their own lose them"},
		{"transaction_timeout", shortTransaction, "it ends batches, handlers and purges in their middle, and nothing in Oncemill sets another"},
		{"idle_session_timeout", 1 << 62, "it ends idle connections of the pools, and the relay's that listens for wake-ups"},
	} {
		value, err := milliseconds(ctx, tx, t.name)
		if err != nil {
			return err
		}
		if value > 0 && value < t.less {
			bad = true
			p.warn("timeouts", fmt.Sprintf("%s is %s for role %q", t.name, seconds(value), p.who), t.why, "ALTER ROLE "+pq.QuoteIdentifier(p.who)+" SET "+t.name+" = 0; or in the connection string, ?"+t.name+"=0")
		}
	}
	if !bad {
		p.ok("timeouts", "no timeout of the role or the database cuts Oncemill's statements")
	}
	return nil
}

// lookAtParameters looks at the connection string.
func (p *Postgres) lookAtParameters(context.Context, *sql.Tx) error {
	switch on := p.config.BinaryParameters; {
	case p.pooled && !on:
		p.warn("parameters", "binary_parameters is not in the connection string, and a pooler in transaction mode is between",
			"lib/pq sends a query and its arguments in two parts then, which can come to two sessions: statements fail now and then with \"unnamed prepared statement does not exist\"",
			"add binary_parameters=yes for the program oncemill, and for others with lib/pq; pgx needs nothing. A handler that uses lib/pq has to hand json and jsonb columns strings then, not []byte")
	case p.pooled:
		p.ok("parameters", "binary_parameters is on, as lib/pq needs it behind a pooler in transaction mode")
	case on:
		p.warn("parameters", "binary_parameters is on in the connection string",
			"lib/pq then sends []byte in binary: a handler that hands one to a json or jsonb column fails with \"unsupported jsonb version number\", and so ends in a dead letter",
			"leave binary_parameters out, or hand such columns strings; Oncemill's own statements work either way")
	default:
		p.ok("parameters", "nothing in the connection string changes how arguments are sent")
	}
	return nil
}

// seconds rounds a time for people.
func seconds(d time.Duration) string { return durable.Seconds(d) }
