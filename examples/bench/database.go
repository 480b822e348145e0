package main

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/examples/internal/crew"
	"github.com/oncemill/oncemill/examples/internal/screen"
)

// Databases.
const (
	emptyDatabase  = "bench"
	grownDatabase  = "grown"
	randomDatabase = "grown_random"
)

// consumer is the name in which keys are claimed: that of the workers' handler.
const consumer = "bench"

// A database has the tables of some contenders.
type database struct {
	db     *sql.DB
	worker string // its URL for workers
}

// hotRows is how many rows the hot contenders update.
const hotRows = 1000

const schemaSQL = `
CREATE TABLE effects (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, key text NOT NULL, payload text NOT NULL);
CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL)`

// database returns the one with a name, and makes it when it is first asked for.
func (s *stage) database(ctx context.Context, name string) (*database, error) {
	if name == "" {
		name = emptyDatabase
	}
	if d := s.databases[name]; d != nil {
		return d, nil
	}
	address, err := crew.CreateDatabase(ctx, s.server, name)
	if err != nil {
		return nil, err
	}
	d := new(database)
	if d.worker, err = s.proxy.through(address); err != nil {
		return nil, err
	}
	if d.db, err = crew.OpenDB(address); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, d.db.Close)
	if err := oncemill.Migrate(ctx, d.db, ""); err != nil {
		return nil, err
	}
	if _, err := d.db.ExecContext(ctx, schemaSQL); err != nil {
		return nil, err
	}
	if name != emptyDatabase {
		if err := s.grow(ctx, d, name == randomDatabase); err != nil {
			return nil, fmt.Errorf("load claims: %w", err)
		}
	}
	s.databases[name] = d
	return d, nil
}

// grow loads claims of the last days, and leaves the table as autovacuum would.
func (s *stage) grow(ctx context.Context, d *database, random bool) error {
	key, order := keySQL("(extract(epoch FROM now() - interval '1 day') * 1000)::bigint"), "in the order of time"
	if random {
		key, order = "gen_random_uuid()::text", "in no order"
	}
	const chunk = 500_000
	for done := 0; done < s.options.grown; done += chunk {
		s.screen.Status(fmt.Sprintf("loading %s claims with keys %s: %s", screen.Thousands(s.options.grown), order, screen.Thousands(done)))
		_, err := d.db.ExecContext(ctx, `
INSERT INTO oncemill.claims (consumer, key, settled_at)
SELECT '`+consumer+`', `+key+`, now() - interval '1 day' + g * interval '1 microsecond'
FROM generate_series($1::bigint, $2::bigint) AS g`, done, min(done+chunk, s.options.grown)-1)
		if err != nil {
			return err
		}
	}
	if _, err := d.db.ExecContext(ctx, `VACUUM (ANALYZE) oncemill.claims`); err != nil {
		return err
	}
	var bytes int64
	if err := d.db.QueryRowContext(ctx, `SELECT pg_total_relation_size('oncemill.claims')`).Scan(&bytes); err != nil {
		return err
	}
	s.screen.Line(fmt.Sprintf("%s claims with keys %s take %d bytes each, indexes included", screen.Thousands(s.options.grown), order, bytes/int64(s.options.grown)))
	return nil
}

// clear empties what a turn fills, but for claims that are to stay.
func (d *database) clear(ctx context.Context, claims bool) error {
	query := `TRUNCATE effects, accounts, oncemill.outbox`
	if claims {
		query += `, oncemill.claims, oncemill.watermarks`
	}
	_, err := d.db.ExecContext(ctx, query)
	if err == nil {
		_, err = d.db.ExecContext(ctx, `INSERT INTO accounts SELECT g, 0 FROM generate_series(0, $1::int) AS g`, hotRows-1)
	}
	return err
}
