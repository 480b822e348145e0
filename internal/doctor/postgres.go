package doctor

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lib/pq"

	"github.com/oncemill/oncemill/internal/pgurl"
	"github.com/oncemill/oncemill/schema"
)

// Postgres is the database to be looked at.
type Postgres struct {
	URL       string        // as --database-url takes it
	Schema    string        // "" means "oncemill"
	Role      Role          // whose rights the URL's role should have; "": they are not looked at
	Retention time.Duration // for how long workers keep claims: Inbox.Retention

	// Long is after how long a transaction that stays open is worth a warning, and Late
	// after how long a message that waits is. 0 means DefaultLong and DefaultLate.
	Long, Late time.Duration

	// Clock is this machine's. nil means time.Now.
	Clock func() time.Time

	config  pq.Config
	version int // of the schema, 0 while that is not known
	line    *hangUp
	who     string
	stop    bool // nothing else can be looked at
	pooled  bool // a pooler in transaction mode is between
	brief   Briefing
	findings
}

// A Briefing is what the database says about what the broker has to be like.
type Briefing struct {
	Topics []string // that the outbox has sent to lately, and those that were named

	// Kept is for how long claims are kept at least, and Consumer whose claims they are,
	// "" where that is what was asked for.
	Kept     time.Duration
	Consumer string
}

// topics are the Topics, each once and in order.
func (b Briefing) topics() []string { return slices.Compact(slices.Sorted(slices.Values(b.Topics))) }

// Defaults of Postgres's fields.
const (
	DefaultLong = 5 * time.Minute
	DefaultLate = time.Minute
)

// answerWithin is how long a check may take. The outbox and the claims may be large: what
// is counted, is counted up to a limit.
const answerWithin = 5 * time.Second

// A check looks at one thing, in a transaction that can only read.
type check struct {
	name string
	run  func(ctx context.Context, tx *sql.Tx) error

	alone bool // it needs no transaction
}

// Check looks at everything that can be reached. It does not fail: that too is a finding.
func (p *Postgres) Check(ctx context.Context) ([]Finding, Briefing) {
	p.part = PartPostgres
	p.brief = Briefing{Kept: p.Retention}
	config, err := pq.NewConfig(pgurl.Normal(p.URL))
	if err != nil { // the caller has checked it
		p.fail("connection", "the connection string cannot be read", "", "write it as postgres://user:password@host:5432/database?sslmode=...")
		return p.all, p.brief
	}
	p.config = config
	connector, err := pgurl.Connector(p.URL)
	if err != nil {
		p.fail("connection", err.Error(), "", "")
		return p.all, p.brief
	}
	p.line = new(hangUp)
	connector.Dialer(p.line)
	db := sql.OpenDB(connector)
	defer db.Close()
	db.SetMaxOpenConns(1)
	if p.connect(ctx, db) {
		p.runAll(ctx, db)
	}
	return p.all, p.brief
}

func (p *Postgres) runAll(ctx context.Context, db *sql.DB) {
	server := []check{
		{name: "pooler", run: p.lookForPooler, alone: true}, {name: "connection", run: p.lookAtSession}, {name: "version", run: p.lookAtVersion}, {name: "primary", run: p.lookAtPrimary}, {name: "writable", run: p.lookAtWritable},
		{name: "encoding", run: p.lookAtEncoding}, {name: "durability", run: p.lookAtDurability}, {name: "standbys", run: p.lookAtStandbys},
		{name: "parameters", run: p.lookAtParameters, alone: true}, {name: "timeouts", run: p.lookAtTimeouts}, {name: "isolation", run: p.lookAtIsolation},
		{name: "connections", run: p.lookAtConnections}, {name: "clock", run: p.lookAtClock}, {name: "schema", run: p.lookAtSchema},
	}
	tables := []check{
		{name: "owner", run: p.lookAtOwner}, {name: "grants", run: p.lookAtGrants}, {name: "backlog", run: p.lookAtBacklog}, {name: "deferred", run: p.lookAtDeferred},
		{name: "parked rows", run: p.lookAtParkedRows}, {name: "scheduled", run: p.lookAtScheduled}, {name: "relay", run: p.lookForRelay}, {name: "in doubt", run: p.lookAtDoubts},
		{name: "parked messages", run: p.lookAtParkedMessages}, {name: "failing", run: p.lookAtFailing}, {name: "retention", run: p.lookAtRetention}, {name: "old snapshots", run: p.lookForSnapshots},
		{name: "replication slots", run: p.lookAtSlots}, {name: "prepared transactions", run: p.lookAtPrepared}, {name: "vacuum", run: p.lookAtVacuum}, {name: "sizes", run: p.lookAtSizes},
		{name: "topics", run: p.readTopics},
	}
	for _, checks := range [][]check{server, tables} {
		for i, c := range checks {
			if !p.runOne(ctx, db, c) {
				p.skip("the rest", fmt.Sprintf("%d more checks of Postgres, and those after them, were not made", len(checks)-i-1), "run it again when that is put right")
				return
			}
		}
		if p.version == 0 {
			if p.Role == Migrate {
				p.runOne(ctx, db, check{name: "grants", run: p.lookAtMigrator})
			}
			p.skip("the rest", "rights, outbox and claims: there are no tables to look at", "")
			return
		}
	}
}

// runOne runs a check. It reports whether others make sense.
func (p *Postgres) runOne(ctx context.Context, db *sql.DB, c check) (goOn bool) {
	err := p.begin(ctx, db, c)
	var server *pq.Error
	switch {
	case err == nil:
		return !p.stop
	case ctx.Err() != nil:
		p.skip(c.name, "interrupted", "")
		return false
	case errors.As(err, &server) && server.Code == "42501":
		p.skip(c.name, fmt.Sprintf("role %q may not look: %s", p.who, server.Message), howToSee)
		return true
	case errors.As(err, &server) && (server.Code == "57014" || server.Code == "55P03"):
		p.skip(c.name, fmt.Sprintf("no answer within %v: %s", answerWithin, server.Message), "see what the findings about old snapshots and vacuum say, and pg_stat_activity")
		return true
	case isLost(err):
		p.fail(c.name, "the connection was lost: "+p.redacted(err), "", "")
		return false
	}
	p.skip(c.name, p.redacted(err), "")
	return true
}

// howToSee is what helps a role that may not look. A program's own role needs no more
// rights for the doctor's sake.
const howToSee = "run the doctor once more as oncemill_doctor, the role of docs/operating.md that may look at everything"

// begin runs a check. What opens connections of its own holds none meanwhile: a pooler may
// have few.
func (p *Postgres) begin(ctx context.Context, db *sql.DB, c check) error {
	if c.alone {
		return c.run(ctx, nil)
	}
	return p.line.within(3*answerWithin, func() error { return inReadOnly(ctx, db, c.run) })
}

// inReadOnly runs fn in a transaction that can change nothing, waits for no lock and is
// over soon. What is without arguments needs no prepared statement, which a pooler may
// not know.
func inReadOnly(ctx context.Context, db *sql.DB, fn func(ctx context.Context, tx *sql.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*answerWithin)
	defer cancel()
	tx, err := db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // there is nothing to roll back
	limits := fmt.Sprintf(`SET LOCAL statement_timeout = %d; SET LOCAL lock_timeout = 1000`, answerWithin.Milliseconds())
	if _, err := tx.ExecContext(ctx, limits); err != nil {
		return err
	}
	return fn(ctx, tx)
}

// redacted is an error without the password, should it be in it.
func (p *Postgres) redacted(err error) string {
	text := err.Error()
	if p.config.Password != "" {
		text = strings.ReplaceAll(text, p.config.Password, "********")
	}
	return text
}

// connect reports whether there is a connection.
func (p *Postgres) connect(ctx context.Context, db *sql.DB) bool {
	ctx, cancel := context.WithTimeout(ctx, 4*answerWithin)
	defer cancel()
	begun := time.Now()
	err := p.line.within(6*answerWithin, func() error { return db.PingContext(ctx) })
	took := time.Since(begun)
	if err == nil {
		p.ok("connection", "%s answers in %v", p.address(), took.Round(time.Millisecond))
		return true
	}
	do := "check the address, the credentials and that the server accepts connections"
	switch text := err.Error(); {
	case strings.Contains(text, "SSL is not enabled"):
		do = "the server has no TLS: set it up there, or add sslmode=disable to the connection string, as for a server on this machine"
	case strings.Contains(text, "startup parameter"):
		do = "it is PgBouncer: in its configuration set ignore_startup_parameters = extra_float_digits, or leave the parameter out of the connection string"
	case strings.Contains(text, "too many ") || strings.Contains(text, "remaining connection slots"):
		do = "close connections or raise max_connections; limit the pools of all programs with SetMaxOpenConns"
	}
	p.fail("connection", p.address()+" cannot be reached: "+p.redacted(err), "nothing works without it; what else is in Postgres was not looked at", do)
	return false
}

// address is where the connection leads, without user and password.
func (p *Postgres) address() string {
	hosts := []string{hostPort(p.config.Host, p.config.Port)}
	for _, m := range p.config.Multi { // besides the first
		hosts = append(hosts, hostPort(m.Host, m.Port))
	}
	return strings.Join(hosts, ",") + "/" + p.config.Database
}

func hostPort(host string, port uint16) string {
	if isSocket(host) {
		return host
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}

// isSocket reports whether a host is a Unix socket's directory.
func isSocket(host string) bool { return strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") }

// setting returns what a setting is in the role's sessions, "" if there is no such one.
func setting(ctx context.Context, tx *sql.Tx, name string) (value string, err error) {
	err = tx.QueryRowContext(ctx, `SELECT COALESCE((SELECT reset_val FROM pg_settings WHERE name = '`+name+`'), '')`).Scan(&value)
	return value, err
}

// milliseconds reads a setting that is a time.
func milliseconds(ctx context.Context, tx *sql.Tx, name string) (time.Duration, error) {
	value, err := setting(ctx, tx, name)
	if err != nil || value == "" {
		return 0, err
	}
	n, err := strconv.ParseInt(value, 10, 64)
	return time.Duration(n) * time.Millisecond, err
}

// table is the name of one of Oncemill's tables.
func (p *Postgres) table(name string) string { return schema.Quote(p.Schema) + "." + name }
