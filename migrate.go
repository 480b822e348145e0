package oncemill

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/oncemill/oncemill/internal/dbcheck"
	"github.com/oncemill/oncemill/schema"
)

// Migrate creates Oncemill's tables in a Postgres schema, or brings them up to
// the version that this build needs. schemaName "" means "oncemill". All of it
// happens in one transaction under a lock, so any number of processes may call
// it at the same time, and a failure leaves everything as it was.
//
// It fails if the schema is newer than this build, if the database takes no
// writes, and if its encoding is not UTF8.
func Migrate(ctx context.Context, db *sql.DB, schemaName string) error {
	migrations, err := schema.Under(schemaName)
	if err != nil {
		return err
	}
	err = migrate(ctx, db, schemaName, migrations)
	if err != nil {
		return fmt.Errorf("oncemill: migrate schema %s: %w%s", schema.Quote(schemaName), markUnavailable(err), mayNotCreate(ctx, db, err))
	}
	return nil
}

// mayNotCreate is the statement that helps, if an error means that the role may not create
// a schema in the database.
func mayNotCreate(ctx context.Context, db *sql.DB, err error) string {
	if sqlState(err) != "42501" {
		return ""
	}
	var database, role string
	var may bool
	asked := db.QueryRowContext(ctx, `SELECT current_database(), current_user, has_database_privilege(current_database(), 'CREATE')`).Scan(&database, &role, &may)
	if asked != nil || may {
		return ""
	}
	return fmt.Sprintf(" (GRANT CREATE ON DATABASE %s TO %s)", schema.Quote(database), schema.Quote(role))
}

func migrate(ctx context.Context, db *sql.DB, schemaName string, migrations []schema.Migration) error {
	// Before BEGIN, which lib/pq asks for in a way that a replica refuses.
	if err := dbcheck.Reachable(ctx, db); err != nil {
		return err
	}
	if err := dbcheck.Writable(ctx, db); err != nil {
		return err
	}
	tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after a commit there is nothing left to roll back

	if _, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock(hashtextextended('oncemill migrate ' || $1, 0))`, schema.Quote(schemaName)); err != nil {
		return err
	}
	var encoding string
	if err := tx.QueryRowContext(ctx, `SELECT current_setting('server_encoding')`).Scan(&encoding); err != nil {
		return err
	}
	if encoding != "UTF8" {
		return fmt.Errorf("the database's encoding is %s, which cannot hold every key and header: use one created with ENCODING 'UTF8'", encoding)
	}
	version, err := dbcheck.Version(ctx, tx, schemaName)
	if err != nil {
		return err
	}
	if version > schema.Version {
		return dbcheck.Supported(schemaName, version)
	}
	for _, m := range migrations {
		if m.Version <= version {
			continue
		}
		if _, err := tx.ExecContext(ctx, m.SQL); err != nil {
			return fmt.Errorf("%s: %w", m.Name, err)
		}
	}
	return tx.Commit()
}
