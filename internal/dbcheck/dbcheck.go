// Package dbcheck looks at a database before anything is written to it, and
// says what is wrong and what helps.
package dbcheck

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"

	"github.com/oncemill/oncemill/internal/durable"
	"github.com/oncemill/oncemill/internal/hint"
	"github.com/oncemill/oncemill/schema"
)

var (
	// ErrUnreachable means that no connection to the database could be had.
	ErrUnreachable = errors.New("database cannot be reached")

	// ErrReadOnly means that the database cannot be written to: it is a replica,
	// or its sessions are read-only.
	ErrReadOnly = errors.New("database is read-only")

	// ErrSchema means that the database's schema is missing, too old or too new.
	ErrSchema = errors.New("wrong database schema")
)

// Check returns nil if db can be written to and holds a schema that this build
// runs on. "" stands for schema.Default. Its errors wrap ErrUnreachable,
// ErrReadOnly or ErrSchema and name the remedy.
func Check(ctx context.Context, db *sql.DB, schemaName string) error {
	_, err := Survey(ctx, db, schemaName)
	return err
}

// Survey is Check, and also returns what may be lost of what db commits: that comes with
// the same round trips.
func Survey(ctx context.Context, db *sql.DB, schemaName string) ([]durable.Warning, error) {
	// Sessions in the pool may be from before a restart or a failover, and know
	// only of the server as it was then.
	for tries := db.Stats().Idle; ; tries-- {
		warnings, err := checkSession(ctx, db, schemaName)
		if err == nil || tries <= 0 || ctx.Err() != nil {
			return warnings, err
		}
	}
}

// checkSession checks on one session, and takes it out of the pool if it is
// not in order.
func checkSession(ctx context.Context, db *sql.DB, schemaName string) (warnings []durable.Warning, err error) {
	conn, err := db.Conn(ctx)
	if err == nil {
		defer conn.Close()
		defer func() {
			if err != nil {
				_ = conn.Raw(func(any) error { return driver.ErrBadConn })
			}
		}()
		err = Reachable(ctx, conn)
	} else {
		err = unreachable(err)
	}
	if err != nil {
		return nil, err
	}
	if warnings, err = writable(ctx, conn); err != nil {
		return nil, err
	}
	found, err := Version(ctx, conn, schemaName)
	if err != nil {
		return nil, err
	}
	return warnings, Supported(schemaName, found)
}

// Reachable returns nil if a database answers.
func Reachable(ctx context.Context, db interface {
	PingContext(ctx context.Context) error
}) error {
	if err := db.PingContext(ctx); err != nil {
		return unreachable(err)
	}
	return nil
}

func unreachable(err error) error {
	remedy := "check the address, the credentials and that the server accepts connections"
	for _, refusal := range withoutTLS {
		if strings.Contains(err.Error(), refusal) {
			remedy = "the server has no TLS: set it up there, or add sslmode=disable to the connection string, as for a server on this machine"
		}
	}
	return fmt.Errorf("%w: %w (%s)", ErrUnreachable, err, remedy)
}

// withoutTLS is what lib/pq and pgx say of a server that has no TLS. Not both have an
// error of their own for it.
var withoutTLS = []string{"SSL is not enabled on the server", "server refused TLS connection"}

// Querier is a *sql.DB, a *sql.Conn or a *sql.Tx.
type Querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// Writable returns nil if db is a primary whose sessions may write.
func Writable(ctx context.Context, db Querier) error {
	var replica, readOnly bool
	if err := db.QueryRowContext(ctx, `SELECT `+writableColumns).Scan(&replica, &readOnly); err != nil {
		return fmt.Errorf("ask the database whether it can be written to: %w", err)
	}
	return asWritable(replica, readOnly)
}

const writableColumns = `pg_is_in_recovery(), current_setting('transaction_read_only') = 'on'`

// writable is Writable, and asks for more in the same query. Not every database that is
// like Postgres has the views: then there is nothing to warn of.
func writable(ctx context.Context, db Querier) ([]durable.Warning, error) {
	var replica, readOnly bool
	var p durable.Postgres
	err := db.QueryRowContext(ctx, `SELECT `+writableColumns+`, `+durable.Columns+` FROM `+durable.From).Scan(append([]any{&replica, &readOnly}, p.Into()...)...)
	if err != nil {
		return nil, Writable(ctx, db)
	}
	return p.Warnings(), asWritable(replica, readOnly)
}

func asWritable(replica, readOnly bool) error {
	switch {
	case replica:
		return fmt.Errorf("%w: it is a replica (connect to the primary; with several hosts in the URL, add target_session_attrs=read-write)", ErrReadOnly)
	case readOnly:
		return fmt.Errorf("%w: transactions begin read-only (set default_transaction_read_only to off for this role and database)", ErrReadOnly)
	}
	return nil
}

// Version returns the version of the schema in the database, 0 if there is
// none.
func Version(ctx context.Context, db Querier, schemaName string) (int, error) {
	table := schema.Quote(schemaName) + ".schema_version"
	exists, err := HasTable(ctx, db, table)
	if err != nil {
		return 0, fmt.Errorf("look for table %s: %w%s%s", table, err, ofPooler(err), ofRights(err, "USAGE ON SCHEMA "+schema.Quote(schemaName)))
	}
	if !exists {
		return 0, nil
	}
	var version int
	if err := db.QueryRowContext(ctx, `SELECT coalesce(max(version), 0) FROM `+table).Scan(&version); err != nil {
		return 0, fmt.Errorf("read the schema's version from %s: %w%s", table, err, ofRights(err, "SELECT ON "+table))
	}
	return version, nil
}

// HasTable reports whether there is a table, named as in SQL with its schema.
func HasTable(ctx context.Context, db Querier, table string) (has bool, err error) {
	err = db.QueryRowContext(ctx, `SELECT to_regclass($1::text) IS NOT NULL`, table).Scan(&has)
	return has, err
}

// NoTable returns err, explained if it means that a table is missing that came with a
// version of the schema. what is what cannot be done without it.
func NoTable(err error, version int, what string) error {
	if SQLState(err) != "42P01" {
		return err
	}
	return fmt.Errorf("%w: %w: %s from schema version %d on (run `oncemill migrate`)", ErrSchema, err, what, version)
}

// SQLState returns the SQLSTATE of a Postgres error in err's tree, "" if there is none. The
// errors of both lib/pq and pgx have the method.
func SQLState(err error) string {
	var e interface{ SQLState() string }
	if errors.As(err, &e) {
		return e.SQLState()
	}
	return ""
}

// ofPooler says what helps where a statement and its arguments have come to two sessions.
func ofPooler(err error) string {
	if state := SQLState(err); state == "26000" || state == "42P05" {
		return " (is there a PgBouncer in between? It has to be 1.21 or later with max_prepared_statements above 0, and lib/pq needs binary_parameters=yes in the connection string)"
	}
	return ""
}

// ofRights says what helps where the role lacks a grant.
func ofRights(err error, grant string) string {
	if SQLState(err) == "42501" {
		return " (GRANT " + grant + " to this role)"
	}
	return ""
}

// Supported returns nil if found is a schema version that this build runs on.
func Supported(schemaName string, found int) error {
	where := "schema " + schema.Quote(schemaName)
	command := "oncemill migrate"
	if schemaName != "" && schemaName != schema.Default {
		command += " --schema " + hint.Quote(schemaName)
	}
	switch {
	case found == 0:
		return fmt.Errorf("%w: %s has no Oncemill tables, version %d is needed (run `%s` on this database)",
			ErrSchema, where, schema.Version, command)
	case found < schema.Oldest:
		return fmt.Errorf("%w: %s has version %d, too old: version %d is needed (run `%s`)",
			ErrSchema, where, found, schema.Version, command)
	case found > schema.Version:
		return fmt.Errorf("%w: %s has version %d, too new: this build needs version %d (upgrade this program to the release whose `oncemill migrate` made that version)",
			ErrSchema, where, found, schema.Version)
	}
	return nil
}
