package servers

import (
	"context"
	"errors"

	"github.com/oncemill/oncemill/testcontainers/pgbouncer"
)

// PgBouncer starts a PgBouncer in front of a Postgres server that is meant for many tests,
// and returns its address, host:port, and a function that stops it.
func PgBouncer(ctx context.Context, upstream string) (addr string, stop func() error, err error) {
	server, err := pgbouncer.Start(ctx, pgbouncer.Options{Upstream: upstream, Settings: map[string]string{
		// The tests give one URL to all drivers: the second is for lib/pq, and pgx sends it on.
		"ignore_startup_parameters": "extra_float_digits,binary_parameters",
	}})
	if err != nil {
		return "", nil, err
	}
	return server.Addr(), server.Close, nil
}

// PgBouncerMissing says what is missing to start one with, "" if nothing is. A program that
// is named but does not work is not one that is missing: the tests shall fail for it.
func PgBouncerMissing(ctx context.Context) string {
	if _, err := pgbouncer.Find(ctx); errors.Is(err, pgbouncer.ErrNotFound) {
		return err.Error()
	}
	return ""
}
