package doctor

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/lib/pq"

	"github.com/oncemill/oncemill/internal/dbcheck"
	"github.com/oncemill/oncemill/internal/grants"
	"github.com/oncemill/oncemill/schema"
)

func (p *Postgres) lookAtSchema(ctx context.Context, tx *sql.Tx) error {
	usage, err := p.mayUse(ctx, tx)
	if err != nil {
		return err
	}
	if !usage {
		p.fail("schema", fmt.Sprintf("role %q may not use schema %s", p.who, grants.Named(p.Schema)), "it sees none of Oncemill's tables",
			"as the owner of the schema: "+useSchema().SQL(p.Schema, pq.QuoteIdentifier(p.who)))
		return nil
	}
	if readable, err := p.has(ctx, tx, grants.On("schema_version", "SELECT")); err != nil || !readable {
		return p.unreadable(ctx, tx, err)
	}
	found, err := dbcheck.Version(ctx, tx, p.Schema)
	if err != nil {
		return err
	}
	command := p.migrateCommand()
	switch err := dbcheck.Supported(p.Schema, found); {
	case found == 0:
		p.noTables()
	case err != nil && found > schema.Version:
		p.fail("schema", fmt.Sprintf("schema %s has version %d, which is newer than this program", grants.Named(p.Schema), found), fmt.Sprintf("this build knows versions %d to %d, and refuses to start on others", schema.Oldest, schema.Version),
			"upgrade this program to the release whose `oncemill migrate` made that version")
	case err != nil:
		p.fail("schema", fmt.Sprintf("schema %s has version %d, which is too old", grants.Named(p.Schema), found), fmt.Sprintf("this build needs version %d, and refuses to start on anything before %d", schema.Version, schema.Oldest), "run `"+command+"`")
	case found < schema.Version:
		p.version = found
		p.warn("schema", fmt.Sprintf("schema %s has version %d", grants.Named(p.Schema), found), fmt.Sprintf("this build runs on it, but not all of it does: it needs version %d for the rest", schema.Version),
			"run `"+command+"`; programs of the release before go on with the new version")
	default:
		p.version = found
		p.ok("schema", "schema %s has version %d, as this build needs", grants.Named(p.Schema), found)
	}
	return nil
}

func (p *Postgres) migrateCommand() string {
	return p.command("migrate")
}

// command is one of the program's, for this schema.
func (p *Postgres) command(name string) string {
	command := "oncemill " + name
	if grants.Named(p.Schema) != schema.Default {
		command += " --schema '" + p.Schema + "'"
	}
	return command
}

func (p *Postgres) noTables() {
	p.fail("schema", "schema "+grants.Named(p.Schema)+" has no Oncemill tables", fmt.Sprintf("this build needs version %d", schema.Version),
		"run `"+p.migrateCommand()+"` on this database, as a role that may create schemas; or name another with --schema")
}

// unreadable goes on as if the version were right, if there are tables: a producer need not
// be able to read it.
func (p *Postgres) unreadable(ctx context.Context, tx *sql.Tx, err error) error {
	if err != nil {
		return err
	}
	var exists bool
	err = tx.QueryRowContext(ctx, `SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = `+p.schemaLiteral()+` AND c.relname = 'schema_version')`).Scan(&exists)
	if err != nil {
		return err
	}
	if !exists {
		p.noTables()
		return nil
	}
	p.version = schema.Version
	p.skip("schema", fmt.Sprintf("role %q may not read the schema's version", p.who), grants.On("schema_version", "SELECT").SQL(p.Schema, pq.QuoteIdentifier(p.who)))
	return nil
}

// mayUse reports whether the role may look into the schema, or there is none.
func (p *Postgres) mayUse(ctx context.Context, tx *sql.Tx) (may bool, err error) {
	err = tx.QueryRowContext(ctx, `SELECT COALESCE((SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = `+p.schemaLiteral()+`), true)`).Scan(&may)
	return may, err
}

func (p *Postgres) schemaLiteral() string {
	name := p.Schema
	if name == "" {
		name = schema.Default
	}
	return pq.QuoteLiteral(name)
}

func (p *Postgres) lookAtOwner(ctx context.Context, tx *sql.Tx) error {
	var owner string
	var mine bool
	var others sql.NullString
	err := tx.QueryRowContext(ctx, `
SELECT pg_get_userbyid(n.nspowner), pg_has_role(n.nspowner, 'MEMBER') AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
	(SELECT string_agg(c.relname, ', ' ORDER BY c.relname) FROM pg_class c WHERE c.relnamespace = n.oid AND c.relkind IN ('r', 'S') AND c.relowner <> n.nspowner)
FROM pg_namespace n WHERE n.nspname = `+p.schemaLiteral()).Scan(&owner, &mine, &others)
	if err != nil {
		return err
	}
	switch {
	case others.Valid:
		p.warn("owner", fmt.Sprintf("schema %s belongs to %q, but not %s in it", grants.Named(p.Schema), owner, others.String), "the next migration alters them, which only their owner may",
			"ALTER TABLE ... OWNER TO "+pq.QuoteIdentifier(owner))
	case mine && p.Role != "" && p.Role != Migrate:
		p.warn("owner", fmt.Sprintf("schema %s belongs to role %q itself", grants.Named(p.Schema), p.who), "it may do anything to the tables, and drop them",
			"have another role migrate, and give this one the grants of docs/operating.md")
	default:
		p.ok("owner", "schema %s belongs to %q", grants.Named(p.Schema), owner)
	}
	return nil
}

func (p *Postgres) lookAtGrants(ctx context.Context, tx *sql.Tx) error {
	switch p.Role {
	case "":
		p.skip("grants", "what the role may do was not looked at", "say what it is for: --role "+roleNames())
		return nil
	case Migrate:
		return p.lookAtMigrator(ctx, tx)
	}
	missing, err := p.Role.Grants(p.version).Lacking(ctx, tx, p.Schema)
	if err != nil {
		return err
	}
	if len(missing) == 0 {
		p.ok("grants", "role %q has what the %s needs", p.who, p.Role)
		return nil
	}
	why := "the " + string(p.Role) + " fails when it comes to what it may not do"
	statements := missing.SQL(p.Schema, pq.QuoteIdentifier(p.who))
	for statement := range strings.SplitSeq(statements, "\n") {
		what, _, _ := strings.Cut(strings.TrimPrefix(statement, "GRANT "), " TO ")
		p.fail("grants", fmt.Sprintf("role %q lacks %s", p.who, what), why, statement)
	}
	return nil
}

// has reports whether the role has some grants.
func (p *Postgres) has(ctx context.Context, tx *sql.Tx, all grants.List) (has bool, err error) {
	missing, err := all.Lacking(ctx, tx, p.Schema)
	return len(missing) == 0, err
}

// lookAtMigrator looks at whether the role can alter what is there.
func (p *Postgres) lookAtMigrator(ctx context.Context, tx *sql.Tx) error {
	var owner string
	var member, create bool
	err := tx.QueryRowContext(ctx, `
SELECT pg_get_userbyid(nspowner), pg_has_role(nspowner, 'USAGE'), has_schema_privilege(oid, 'CREATE')
FROM pg_namespace WHERE nspname = `+p.schemaLiteral()).Scan(&owner, &member, &create)
	if errors.Is(err, sql.ErrNoRows) {
		return p.lookAtFirstMigration(ctx, tx)
	}
	if err != nil {
		return err
	}
	if !member || !create {
		p.fail("grants", fmt.Sprintf("role %q is not the owner of schema %s, which is %q", p.who, grants.Named(p.Schema), owner), "a migration alters tables, which only their owner may",
			"migrate as "+pq.QuoteIdentifier(owner)+", or GRANT "+pq.QuoteIdentifier(owner)+" TO "+pq.QuoteIdentifier(p.who)+";")
		return nil
	}
	p.ok("grants", "role %q may migrate", p.who)
	return nil
}

// lookAtFirstMigration looks at whether the role can create the schema.
func (p *Postgres) lookAtFirstMigration(ctx context.Context, tx *sql.Tx) error {
	var database string
	var create bool
	if err := tx.QueryRowContext(ctx, `SELECT current_database(), has_database_privilege(current_database(), 'CREATE')`).Scan(&database, &create); err != nil {
		return err
	}
	if !create {
		p.fail("grants", fmt.Sprintf("role %q may not create a schema in database %q", p.who, database), "the first migration creates it",
			"as the owner of the database: GRANT CREATE ON DATABASE "+pq.QuoteIdentifier(database)+" TO "+pq.QuoteIdentifier(p.who)+";")
		return nil
	}
	p.ok("grants", "role %q may migrate: it may create the schema", p.who)
	return nil
}

func roleNames() string {
	var names []string
	for _, r := range Roles {
		names = append(names, string(r))
	}
	return strings.Join(names, "|")
}
