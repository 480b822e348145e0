// Package grants names privileges on Oncemill's tables: those that a role lacks, and the
// statements that give them.
package grants

import (
	"fmt"
	"strings"

	"github.com/oncemill/oncemill/schema"
)

// A Grant is one privilege on a table or the sequence of the schema, or on the schema
// itself, where On is "".
type Grant struct {
	Privilege string // such as INSERT
	Column    string // "": of all columns
	On        string
	Since     int // schema version in which On came; 0 if it was there all along
}

// Tokens is the only sequence. Those of identity columns need no grant.
const Tokens = "tokens"

// A List are grants, those on one table side by side.
type List []Grant

// On is a List of privileges on a table, written as in SQL: "SELECT, UPDATE (id), DELETE".
func On(table, privileges string) List { return List(nil).And(table, privileges) }

// And adds privileges on a table.
func (l List) And(table, privileges string) List { return l.From(0, table, privileges) }

// From is And, for a table that came with a version of the schema.
func (l List) From(version int, table, privileges string) List {
	all := append(List(nil), l...)
	for privilege := range strings.SplitSeq(privileges, ", ") {
		privilege, column, _ := strings.Cut(privilege, " ")
		all = append(all, Grant{Privilege: privilege, Column: strings.Trim(column, "()"), On: table, Since: version})
	}
	return all
}

// privilege is the grant's privilege as it is written in SQL.
func (g Grant) privilege() string {
	if g.Column == "" {
		return g.Privilege
	}
	return g.Privilege + " (" + g.Column + ")"
}

// object is what a grant is on, as it is written in SQL.
func (g Grant) object(schemaName string) string {
	switch g.On {
	case "":
		return "SCHEMA " + Named(schemaName)
	case Tokens:
		return "SEQUENCE " + Named(schemaName) + "." + g.On
	}
	return Named(schemaName) + "." + g.On
}

// Named quotes a schema's name where that is needed.
func Named(schemaName string) string {
	if schemaName == "" || schemaName == schema.Default {
		return schema.Default
	}
	return schema.Quote(schemaName)
}

// SQL grants all of the grants to a role, a statement for each object. to is quoted, if
// it needs to be.
func (l List) SQL(schemaName, to string) string {
	var statements []string
	for i := 0; i < len(l); {
		var privileges []string
		object := l[i].object(schemaName)
		for ; i < len(l) && l[i].object(schemaName) == object; i++ {
			privileges = append(privileges, l[i].privilege())
		}
		statements = append(statements, fmt.Sprintf("GRANT %s ON %s TO %s;", strings.Join(privileges, ", "), object, to))
	}
	return strings.Join(statements, "\n")
}
