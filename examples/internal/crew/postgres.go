package crew

import (
	"context"
	"database/sql"
	"fmt"
	"io"

	_ "github.com/lib/pq"

	"github.com/oncemill/oncemill/testcontainers/postgres"
)

// StartPostgres starts a server, which is found on this machine or, saying so,
// downloaded. It says what is started: beside is what the caller starts too.
func StartPostgres(ctx context.Context, out io.Writer, beside string) (*postgres.Server, error) {
	bin, err := postgres.Locate(ctx, out)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(out, "Starting %s, and the Postgres in %s.\n", beside, bin)
	return postgres.Start(ctx, postgres.Options{Bin: bin})
}

// CreateDatabase makes an empty database on the server, and returns its URL.
func CreateDatabase(ctx context.Context, server *postgres.Server, name string) (address string, err error) {
	admin, err := sql.Open("postgres", server.URL("postgres"))
	if err != nil {
		return "", err
	}
	defer admin.Close()
	_, err = admin.ExecContext(ctx, `CREATE DATABASE `+name)
	return server.URL(name), err
}

// OpenDB opens a pool for a process that handles a few messages at a time.
func OpenDB(address string) (*sql.DB, error) {
	db, err := sql.Open("postgres", address)
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(16)
	db.SetMaxIdleConns(16)
	return db, nil
}

// Each calls do with each row of a query.
func Each(ctx context.Context, db *sql.DB, query string, args []any, do func(scan func(...any) error) error) error {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := do(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}
