package testenv

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/lib/pq"

	"github.com/oncemill/oncemill/schema"
)

// CreateDatabase makes a new database on a Postgres server and returns its URL
// and a function that drops it, even while connections are open.
//
// The server is named by the URL of any database on it that already exists and
// that the user may create databases from, such as "postgres". A migrated
// database is copied from a template that holds Oncemill's schema; the first
// caller makes the template, also when several processes call at once, provided
// that they name the same database (an advisory lock is valid in only one).
//
// The module testcontainers compiles against this function, whatever version of
// this module its user has chosen: keep the signature.
func CreateDatabase(ctx context.Context, server string, migrated bool) (address string, drop func(context.Context) error, err error) {
	template := "template0"
	if migrated {
		if template, err = migratedTemplate(ctx, server); err != nil {
			return "", nil, err
		}
	}
	name := "oncemill_test_" + strings.ToLower(rand.Text()[:12])
	err = execute(ctx, server, "CREATE DATABASE "+pq.QuoteIdentifier(name)+" TEMPLATE "+pq.QuoteIdentifier(template))
	if err != nil {
		return "", nil, fmt.Errorf("create a database for a test: %w", err)
	}
	drop = func(ctx context.Context) error {
		return execute(ctx, server, "DROP DATABASE IF EXISTS "+pq.QuoteIdentifier(name)+" WITH (FORCE)")
	}
	address, err = withDatabase(server, name)
	if err != nil {
		return "", nil, errors.Join(err, drop(ctx))
	}
	return address, drop, nil
}

// templateLock keeps processes from making the same template at once. The
// number is arbitrary.
const templateLock = 0x6f6e63656d696c6c

// migratedTemplate returns the name of a database with Oncemill's schema in it,
// which it makes if it is not there. The name says which schema, so that the
// templates of several versions can live on one server.
func migratedTemplate(ctx context.Context, server string) (string, error) {
	migrations, err := schema.Under("")
	if err != nil {
		return "", err
	}
	version, err := schemaVersion()
	if err != nil {
		return "", err
	}
	migrations = slices.DeleteFunc(migrations, func(m schema.Migration) bool { return m.Version > version })
	hash := sha256.New()
	for _, m := range migrations {
		fmt.Fprintf(hash, "%s\x00%s\x00", m.Name, m.SQL)
	}
	name := "oncemill_template_" + hex.EncodeToString(hash.Sum(nil)[:6])

	db, err := sql.Open("postgres", server)
	if err != nil {
		return "", err
	}
	defer db.Close()
	conn, err := db.Conn(ctx)
	if err != nil {
		return "", fmt.Errorf("connect to the test server: %w", err)
	}
	defer conn.Close() // ends the session, and its lock with it
	if ready, err := templateReady(ctx, conn, name); ready || err != nil {
		return name, err
	}
	if _, err := conn.ExecContext(ctx, "SELECT pg_advisory_lock($1)", int64(templateLock)); err != nil {
		return "", err
	}
	if ready, err := templateReady(ctx, conn, name); ready || err != nil {
		return name, err
	}
	if err := makeTemplate(ctx, conn, server, name, migrations); err != nil {
		return "", fmt.Errorf("make the template database %s: %w", name, err)
	}
	return name, nil
}

// schemaVersion is what databases are migrated to.
func schemaVersion() (int, error) {
	text := os.Getenv(SchemaVariable)
	if text == "" {
		return schema.Version, nil
	}
	version, err := strconv.Atoi(text)
	if err != nil || version < schema.Oldest || version > schema.Version {
		return 0, fmt.Errorf("%s is %q: want a version from %d to %d", SchemaVariable, text, schema.Oldest, schema.Version)
	}
	return version, nil
}

// templateReady tells whether a template has been finished: marking it as one
// is the last step of making it.
func templateReady(ctx context.Context, conn *sql.Conn, name string) (ready bool, err error) {
	err = conn.QueryRowContext(ctx,
		"SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1 AND datistemplate)", name).Scan(&ready)
	return ready, err
}

func makeTemplate(ctx context.Context, conn *sql.Conn, server, name string, migrations []schema.Migration) error {
	quoted := pq.QuoteIdentifier(name)
	// What a process left behind that was killed halfway.
	if _, err := conn.ExecContext(ctx, "DROP DATABASE IF EXISTS "+quoted+" WITH (FORCE)"); err != nil {
		return err
	}
	if _, err := conn.ExecContext(ctx, "CREATE DATABASE "+quoted+" TEMPLATE template0"); err != nil {
		return err
	}
	address, err := withDatabase(server, name)
	if err != nil {
		return err
	}
	for _, m := range migrations {
		if err := execute(ctx, address, m.SQL); err != nil {
			return fmt.Errorf("migration %s: %w", m.Name, err)
		}
	}
	// A database cannot be copied while someone is connected to it.
	_, err = conn.ExecContext(ctx, "ALTER DATABASE "+quoted+" WITH IS_TEMPLATE true ALLOW_CONNECTIONS false")
	return err
}

// execute runs statements on a connection of their own. No pool is kept: it
// would show up as a leaked goroutine in the tests that look for those.
func execute(ctx context.Context, address, statements string) error {
	db, err := sql.Open("postgres", address)
	if err != nil {
		return err
	}
	defer db.Close()
	_, err = db.ExecContext(ctx, statements)
	return err
}

// withDatabase returns a connection URL for another database on the same
// server.
func withDatabase(address, name string) (string, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme == "" {
		return "", errors.New("the address of a Postgres server must be a URL, postgres://user:password@host:port/database")
	}
	u.Path = "/" + name
	return u.String(), nil
}

// throughPooler returns a connection URL for the same database through a pooler, with what
// docs/operating.md says to add for lib/pq; the pooler of withservers keeps it from Postgres
// where it comes from pgx. The setting is what a guard needs to be given.
func throughPooler(ctx context.Context, address, pooler string) (string, error) {
	u, err := url.Parse(address)
	if err != nil {
		return "", err
	}
	name := pq.QuoteIdentifier(strings.TrimPrefix(u.Path, "/"))
	if err := execute(ctx, address, "ALTER DATABASE "+name+" SET enable_seqscan = off"); err != nil {
		return "", err
	}
	u.Host = pooler
	query := u.Query()
	query.Set("binary_parameters", "yes")
	u.RawQuery = query.Encode()
	return u.String(), nil
}
