package grants

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"github.com/oncemill/oncemill/schema"
)

// Querier is a *sql.DB, a *sql.Conn or a *sql.Tx.
type Querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// An Error is what a role may not do for want of grants.
type Error struct {
	Role    string
	What    string // such as: claim keys
	Missing List
	Schema  string
}

// Error names the role and the statements that help.
func (e *Error) Error() string {
	statements := e.Missing.SQL(e.Schema, schema.Quote(e.Role))
	return fmt.Sprintf("role %q may not %s (%s)", e.Role, e.What, strings.TrimSuffix(strings.ReplaceAll(statements, "\n", " "), ";"))
}

// Check returns an *Error if the role of db lacks some of what it needs to do something.
//
// It is for who is about to work, and refuses nothing that may work: a privilege on some
// columns of a table counts as one on the table, since Oncemill does not use all columns,
// and a table that is not there is not missed.
func (l List) Check(ctx context.Context, db Querier, schemaName, what string) error {
	role, missing, err := l.missing(ctx, db, schemaName, true)
	if err != nil {
		return fmt.Errorf("look for the rights to %s: %w", what, err)
	}
	if len(missing) > 0 {
		return &Error{Role: role, What: what, Missing: missing, Schema: schemaName}
	}
	return nil
}

// Lacking returns those of the grants that the role of db does not have as they are.
func (l List) Lacking(ctx context.Context, db Querier, schemaName string) (missing List, err error) {
	_, missing, err = l.missing(ctx, db, schemaName, false)
	return missing, err
}

// missing asks for all in one query. What is not there cannot be looked at by its name: that
// needs USAGE of the schema, which may be what is missing.
func (l List) missing(ctx context.Context, db Querier, schemaName string, lenient bool) (role string, missing List, err error) {
	questions := make([]string, len(l))
	for i, g := range l {
		questions[i] = g.question(schemaName, lenient)
	}
	var answers string
	query := `SELECT current_user, concat(` + strings.Join(questions, `, `) + `)`
	if err := db.QueryRowContext(ctx, query).Scan(&role, &answers); err != nil {
		return "", nil, err
	}
	for i, g := range l {
		if answers[i] != 't' {
			missing = append(missing, g)
		}
	}
	return role, missing, nil
}

// question is whether the current role has the grant, as a boolean.
func (g Grant) question(schemaName string, lenient bool) string {
	if schemaName == "" {
		schemaName = schema.Default
	}
	in := literal(schemaName)
	privilege := literal(g.Privilege)
	if g.On == "" {
		return `COALESCE((SELECT has_schema_privilege(oid, ` + privilege + `) FROM pg_namespace WHERE nspname = ` + in + `), false)`
	}
	has := `has_table_privilege`
	switch {
	case g.On == Tokens:
		has = `has_sequence_privilege`
	case g.Column != "" || lenient && g.Privilege != "DELETE":
		has = `has_any_column_privilege`
	}
	return fmt.Sprintf(`COALESCE((SELECT %s(c.oid, %s) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s), %t)`,
		has, privilege, in, literal(g.On), lenient)
}

// literal is a text as it is written in SQL. There are no arguments, which some poolers
// hand to another session than their query.
func literal(text string) string {
	text = strings.ReplaceAll(text, `'`, `''`)
	if strings.Contains(text, `\`) {
		return ` E'` + strings.ReplaceAll(text, `\`, `\\`) + `'`
	}
	return `'` + text + `'`
}
