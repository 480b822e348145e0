package main

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"strings"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/schema"
)

var migrateCommand = command{
	name:    "migrate",
	summary: "create Oncemill's tables, or bring them up to date",
	help: `
Create Oncemill's tables in a Postgres schema, or bring them up to the version
that this program needs. It can be run at any time, by several processes at
once, and a failure leaves everything as it was.

  oncemill migrate --database-url 'postgres://app:secret@127.0.0.1:5432/app?sslmode=disable'

With --print it only prints the SQL, for review or for a migration tool of your
own, and needs no database. Run it on a database without the tables:

  oncemill migrate --print > oncemill.sql`,
	prepare: prepareMigrate,
}

func prepareMigrate(f *flags) action {
	db := f.database()
	show := f.toggle("print", "print the SQL of all migrations instead of running them")
	return func(ctx context.Context, stdout, _ io.Writer) error {
		if *show {
			return printMigrations(stdout, *db.schema)
		}
		return migrate(ctx, db, stdout)
	}
}

func migrate(ctx context.Context, d database, stdout io.Writer) error {
	connector, err := d.connector()
	if err != nil {
		return err
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	if err := oncemill.Migrate(ctx, db, *d.schema); err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "schema %s has version %d\n", schema.Quote(*d.schema), schema.Version)
	return err
}

// printMigrations prints statements that do all or nothing.
func printMigrations(stdout io.Writer, schemaName string) error {
	migrations, err := schema.Under(schemaName)
	if err != nil {
		return err
	}
	var b strings.Builder
	b.WriteString("BEGIN;\n")
	for _, m := range migrations {
		fmt.Fprintf(&b, "\n-- %s\n%s\n", m.Name, strings.TrimSpace(m.SQL))
	}
	b.WriteString("\nCOMMIT;\n")
	_, err = io.WriteString(stdout, b.String())
	return err
}
