package doctor

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// poolerWithin bounds each step of looking for a pooler.
const poolerWithin = 3 * time.Second

// lookForPooler finds out whether PgBouncer or the like stands between, and what of a
// session it keeps. There is nothing to ask: a pooler hands queries on. But it makes the
// key by which a query is cancelled itself, and with it the process id that it tells its
// client.
func (p *Postgres) lookForPooler(ctx context.Context, _ *sql.Tx) error {
	ctx, cancel := context.WithTimeout(ctx, 4*poolerWithin)
	defer cancel()
	first, err := p.session(ctx)
	if err != nil {
		return p.noPoolerKnown(err)
	}
	defer first.Close(context.WithoutCancel(ctx)) //nolint:errcheck // it is only read from
	pid, err := backend(ctx, first)
	if err != nil {
		return p.noPoolerKnown(err)
	}
	if pid == first.PID() {
		p.ok("pooler", "none: the connection leads to Postgres itself")
		return nil
	}
	second, err := p.session(ctx)
	if err != nil {
		return p.noPoolerKnown(err)
	}
	defer second.Close(context.WithoutCancel(ctx)) //nolint:errcheck // it is only read from
	shared, err := shareSession(ctx, first, second)
	if err != nil {
		return p.noPoolerKnown(err)
	}
	if !shared {
		p.ok("pooler", "one such as PgBouncer is between, and gives each connection a session of its own (session mode)")
		return nil
	}
	return p.transactionPooler(ctx, first, second)
}

// shareSession reports whether two connections that are both open have run queries in one
// session. It takes some turns, since others use the pooler too.
func shareSession(ctx context.Context, first, second *pgconn.PgConn) (shared bool, err error) {
	seen := make(map[uint32]*pgconn.PgConn)
	for range 5 {
		for _, conn := range []*pgconn.PgConn{first, second} {
			pid, err := backend(ctx, conn)
			if err != nil {
				return false, err
			}
			if other := seen[pid]; other != nil && other != conn {
				return true, nil
			}
			seen[pid] = conn
		}
	}
	return len(seen) > 2, nil
}

// transactionPooler looks at whether transactions and prepared statements are possible.
func (p *Postgres) transactionPooler(ctx context.Context, first, second *pgconn.PgConn) error {
	kept, err := keepsPrepared(ctx, first, second)
	if err != nil && strings.Contains(err.Error(), "statement pooling") {
		p.fail("pooler", "one such as PgBouncer is between, and gives connections a session for each statement (statement mode)",
			"claims, rows and messages are one transaction, which it refuses", "set pool_mode = transaction or session, or connect to Postgres itself")
		p.stop = true
		return nil
	}
	p.pooled = true
	p.warn("pooler", "one such as PgBouncer is between, and gives connections a session for each transaction (transaction mode)",
		"LISTEN does not reach through it: a relay finds new messages only when it looks, every --poll-interval",
		"give the relay a connection to Postgres itself for it: oncemill relay --listen-url, or Relay.ListenURL; all else may stay behind the pooler")
	switch {
	case err != nil:
		p.skip("prepared statements", "whether the pooler keeps them could not be found out: "+p.redacted(err), "PgBouncer: version 1.21 or newer, and max_prepared_statements above 0")
	case !kept:
		p.fail("prepared statements", "the pooler does not keep prepared statements",
			"they are prepared in one session and run in another, which does not know them: claims fail at random, and so does the relay",
			"upgrade PgBouncer to 1.21 or newer and set max_prepared_statements (100, say), or use pool_mode = session, or connect to Postgres itself")
	default:
		p.ok("prepared statements", "the pooler keeps them")
	}
	return nil
}

// keepsPrepared prepares a statement in the session that both connections use, has second
// hold that session, and runs the statement in whichever one first gets then.
func keepsPrepared(ctx context.Context, first, second *pgconn.PgConn) (kept bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, poolerWithin)
	defer cancel()
	const name = "oncemill_doctor"
	if _, err := first.Prepare(ctx, name, `SELECT 1`, nil); err != nil {
		return false, err
	}
	if _, err := second.Exec(ctx, `BEGIN READ ONLY`).ReadAll(); err != nil { // closing second ends it
		return false, err
	}
	result := first.ExecPrepared(ctx, name, nil, nil, nil).Read()
	var server *pgconn.PgError
	if errors.As(result.Err, &server) && server.Code == "26000" {
		return false, nil
	}
	return result.Err == nil, result.Err
}

func (p *Postgres) noPoolerKnown(err error) error {
	p.skip("pooler", "whether a pooler is between could not be found out: "+p.redacted(err), "")
	return nil
}

// session opens a connection of a driver that says which process id it was told.
func (p *Postgres) session(ctx context.Context) (*pgconn.PgConn, error) {
	ctx, cancel := context.WithTimeout(ctx, poolerWithin)
	defer cancel()
	config, err := pgconn.ParseConfig(p.forPgx())
	if err != nil {
		return nil, errors.New("the connection string has something that only lib/pq reads")
	}
	return pgconn.ConnectConfig(ctx, config)
}

// forPgx returns the connection string without what only lib/pq knows. It asks for TLS as
// lib/pq does where the string says nothing.
func (p *Postgres) forPgx() string {
	u, err := url.Parse(p.URL)
	if err != nil || u.Scheme == "" {
		return strings.NewReplacer("binary_parameters=yes", "", "binary_parameters=no", "").Replace(p.URL) + " sslmode=" + string(p.config.SSLMode)
	}
	query := u.Query()
	query.Del("binary_parameters")
	query.Set("sslmode", string(p.config.SSLMode))
	u.RawQuery = query.Encode()
	return u.String()
}

// backend returns the process id of the session that runs a query.
func backend(ctx context.Context, conn *pgconn.PgConn) (uint32, error) {
	ctx, cancel := context.WithTimeout(ctx, poolerWithin)
	defer cancel()
	results, err := conn.Exec(ctx, `SELECT pg_backend_pid()`).ReadAll()
	if err != nil {
		return 0, err
	}
	if len(results) != 1 || len(results[0].Rows) != 1 {
		return 0, fmt.Errorf("SELECT pg_backend_pid() returned nothing")
	}
	pid, err := strconv.ParseUint(string(results[0].Rows[0][0]), 10, 32)
	return uint32(pid), err
}
