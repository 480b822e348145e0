package oncetest

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/oncemill/oncemill/internal/dbcheck"
	"github.com/oncemill/oncemill/internal/pgarray"
	"github.com/oncemill/oncemill/schema"
)

// mostRows is how many rows a database may have: each run reads all of them.
const mostRows = 50_000

// A table is one of the database that is compared.
type table struct {
	name    string // quoted, with its schema
	label   string // as people call it
	columns string // quoted, those that can be written
}

// tables finds all tables of the database but Oncemill's own; the outbox, and what is
// scheduled, is an effect.
func tables(ctx context.Context, db *sql.DB, own string) ([]table, error) {
	rows, err := db.QueryContext(ctx, `
		SELECT format('%I.%I', n.nspname, c.relname), n.nspname, c.relname,
			(SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) FROM pg_attribute a
			WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '')
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\_%'
			AND (n.nspname <> $1::text OR c.relname IN ('outbox', 'scheduled'))
		ORDER BY n.nspname, c.relname`, own)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []table
	for rows.Next() {
		var t table
		var in, name string
		var columns sql.NullString
		if err := rows.Scan(&t.name, &in, &name, &columns); err != nil {
			return nil, err
		}
		if !columns.Valid {
			continue // it has none
		}
		t.columns, t.label = columns.String, name
		if in != "public" && in != own {
			t.label = in + "." + name
		}
		all = append(all, t)
	}
	return all, rows.Err()
}

// A state is what is in the tables: for each, how often each row is there.
type state []map[string]int

// A row is the values of its columns.
type row map[string]json.RawMessage

// read reads all tables in one statement, and so as they are at one moment.
func (c *checker) read(ctx context.Context) (state, error) {
	var query strings.Builder
	for i, t := range c.tables {
		if i > 0 {
			query.WriteString(" UNION ALL ")
		}
		fmt.Fprintf(&query, "SELECT %d, oncetest_row::text, to_jsonb(oncetest_row)::text FROM ONLY %s AS oncetest_row", i, t.name)
	}
	query.WriteString(" LIMIT " + strconv.Itoa(mostRows+1))
	rows, err := c.DB.QueryContext(ctx, query.String())
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	s := make(state, len(c.tables))
	for i := range s {
		s[i] = map[string]int{}
	}
	n := 0
	for rows.Next() {
		var i int
		var text, columns string
		if err := rows.Scan(&i, &text, &columns); err != nil {
			return nil, err
		}
		s[i][text]++
		if n++; n > mostRows {
			return nil, fmt.Errorf("the database has more than %d rows: Check reads all of them for each run; give it a database of its own, with little in it", mostRows)
		}
		c.json[i][text] = columns
	}
	return s, rows.Err()
}

// A change is what has become of a table. Rows that were updated are in both.
type change struct{ added, removed []row }

// changes compares two states.
func (c *checker) changes(before, after state) ([]change, error) {
	all := make([]change, len(c.tables))
	for i := range c.tables {
		var err error
		if all[i].added, err = c.more(i, before[i], after[i]); err != nil {
			return nil, err
		}
		if all[i].removed, err = c.more(i, after[i], before[i]); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// more returns the rows that there are more of.
func (c *checker) more(table int, before, after map[string]int) ([]row, error) {
	var all []row
	for text, n := range after {
		for range n - before[text] {
			var r row
			if err := json.Unmarshal([]byte(c.json[table][text]), &r); err != nil {
				return nil, err
			}
			all = append(all, r)
		}
	}
	return all, nil
}

// restore brings the tables back to where they were before the first run.
func (c *checker) restore(ctx context.Context) error {
	now, err := c.read(ctx)
	if err != nil {
		return err
	}
	if c.changed(now) == "" {
		return nil
	}
	if err := c.rewrite(ctx, now); err != nil {
		return fmt.Errorf("the tables cannot be brought back to what they were before: %w%s", err, c.remedy())
	}
	if now, err = c.read(ctx); err != nil {
		return err
	}
	if label := c.changed(now); label != "" {
		return fmt.Errorf("table %s cannot be brought back to what it was before: something else writes to it: give Check a database of its own%s", label, c.remedy())
	}
	return nil
}

// remedy is for what triggers and foreign keys may have done.
func (c *checker) remedy() string {
	if c.quiet {
		return ""
	}
	return " (triggers and foreign keys may be in the way: let Case.DB connect as a user that may set session_replication_role, such as a superuser)"
}

// changed returns a table that is not as it was before the first run, "" if there is none.
func (c *checker) changed(now state) string {
	for i, t := range c.tables {
		if !sameRows(c.base[i], now[i]) {
			return t.label
		}
	}
	return ""
}

func sameRows(a, b map[string]int) bool {
	for text, n := range a {
		if b[text] != n {
			return false
		}
	}
	return len(a) == len(b)
}

func (c *checker) rewrite(ctx context.Context, now state) error {
	tx, err := c.DB.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, `SET LOCAL synchronous_commit = off`); err != nil { // it is seen at once, and that is enough
		return err
	}
	if c.quiet { // triggers and foreign keys do not see it
		if _, err := tx.ExecContext(ctx, `SET LOCAL session_replication_role = replica`); err != nil {
			return err
		}
	}
	for i, t := range c.tables {
		if err := t.rewrite(ctx, tx, c.base[i], now[i]); err != nil {
			return fmt.Errorf("table %s: %w", t.label, err)
		}
	}
	return tx.Commit()
}

// rewrite deletes the rows of which there is another number than before, and inserts as
// many as there were.
func (t table) rewrite(ctx context.Context, tx *sql.Tx, before, now map[string]int) error {
	var gone, again []string
	for text, n := range now {
		if before[text] != n {
			gone = append(gone, text)
		}
	}
	for text, n := range before {
		if now[text] != n {
			again = append(again, slices.Repeat([]string{text}, n)...)
		}
	}
	if len(gone) > 0 {
		if _, err := tx.ExecContext(ctx, `DELETE FROM ONLY `+t.name+` AS oncetest_row WHERE oncetest_row::text = ANY ($1::text::text[])`, pgarray.Of(gone)); err != nil {
			return err
		}
	}
	if len(again) == 0 {
		return nil
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO `+t.name+` (`+t.columns+`) OVERRIDING SYSTEM VALUE
		SELECT `+t.columns+` FROM (SELECT (kept::`+t.name+`).* FROM unnest($1::text::text[]) AS old (kept)) AS again`, pgarray.Of(again))
	return err
}

// maySetRole reports whether triggers and foreign keys can be kept out of it.
func maySetRole(ctx context.Context, db *sql.DB) (bool, error) {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return false, err
	}
	defer tx.Rollback()
	_, err = tx.ExecContext(ctx, `SET LOCAL session_replication_role = replica`)
	if dbcheck.SQLState(err) == "42501" {
		return false, nil
	}
	return err == nil, err
}

// forget deletes the claims of the runs, and what belongs to them.
func (c *checker) forget(ctx context.Context) error {
	for _, table := range []string{"claims", "parked", "events"} {
		if _, err := c.DB.ExecContext(ctx, `DELETE FROM `+schema.Quote(c.schema)+`.`+table+` WHERE starts_with(consumer, $1::text)`, c.prefix); err != nil {
			return err
		}
	}
	return nil
}
