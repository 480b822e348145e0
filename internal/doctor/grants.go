package doctor

import (
	"fmt"
	"strings"

	"github.com/oncemill/oncemill/schema"
)

// A Role is what a program does, and so what its database role has to be allowed.
type Role string

const (
	Producer Role = "producer" // inserts into the outbox
	Worker   Role = "worker"   // middleware.Once, with the publisher and Inbox.Run
	Effects  Role = "effects"  // middleware.Guard and oncemill resolve
	Relay    Role = "relay"    // oncemill relay
	Guard    Role = "guard"    // oncemill guard
	Operator Role = "operator" // oncemill claims, oncemill outbox
	Reader   Role = "doctor"   // oncemill doctor
	Migrate  Role = "migrate"  // oncemill migrate
)

// Roles are all roles, in the order in which they are listed.
var Roles = []Role{Producer, Worker, Effects, Relay, Guard, Operator, Reader, Migrate}

// A Grant is one privilege on a table or the sequence of the schema, or on the schema
// itself, where On is "".
type Grant struct {
	Privilege string // such as INSERT
	Column    string // "": of all columns
	On        string
	since     int // schema version in which On came
}

// tokens is the only sequence. Those of identity columns need no grant.
const tokens = "tokens"

// rights are what each role needs, but for Migrate, besides USAGE of the schema.
//
// Who deletes with FOR UPDATE SKIP LOCKED, as the purge and the relay do, needs UPDATE of
// some column, which is one that means least to others.
var rights = map[Role][]Grant{
	Producer: on(6, "scheduled", "INSERT").and(0, "outbox", "INSERT").list(),
	Worker: on(0, "schema_version", "SELECT").
		and(0, "claims", "SELECT, INSERT, UPDATE (settled_at), DELETE").
		and(0, "handler_errors", "SELECT, INSERT, UPDATE, DELETE").
		and(0, "events", "SELECT, INSERT, UPDATE (id), DELETE").
		and(0, "watermarks", "SELECT, INSERT, UPDATE").
		and(0, "outbox", "INSERT").
		and(6, "scheduled", "INSERT").list(),
	Effects: on(0, "schema_version", "SELECT").
		and(0, "claims", "SELECT, INSERT, UPDATE, DELETE").
		and(0, tokens, "USAGE").
		and(0, "parked", "SELECT, INSERT, DELETE").
		and(0, "handler_errors", "SELECT, INSERT, UPDATE, DELETE").
		and(0, "events", "SELECT, INSERT, UPDATE (id), DELETE").
		and(0, "watermarks", "SELECT, INSERT, UPDATE").
		and(0, "outbox", "INSERT").
		and(6, "scheduled", "INSERT").list(),
	Relay: on(0, "schema_version", "SELECT").
		and(0, "outbox", "SELECT, INSERT, UPDATE, DELETE").
		and(6, "scheduled", "SELECT, UPDATE (deliver_after), DELETE").
		and(6, "published", "SELECT, INSERT, UPDATE (id), DELETE").list(),
	Guard: on(0, "schema_version", "SELECT").
		and(0, "claims", "SELECT, INSERT, UPDATE, DELETE").
		and(0, tokens, "USAGE").
		and(0, "parked", "SELECT, DELETE").
		and(0, "handler_errors", "SELECT, UPDATE (errors), DELETE").
		and(0, "events", "SELECT, INSERT, UPDATE (id), DELETE").
		and(0, "watermarks", "SELECT, INSERT, UPDATE").
		and(0, "outbox", "INSERT").
		and(0, "secrets", "SELECT, INSERT").list(),
	Operator: on(0, "schema_version", "SELECT").
		and(0, "claims", "SELECT, UPDATE, DELETE").
		and(0, tokens, "USAGE").
		and(0, "parked", "SELECT, DELETE").
		and(0, "events", "SELECT, INSERT").
		and(0, "outbox", "SELECT, INSERT, UPDATE, DELETE").
		and(6, "published", "SELECT").list(),
	Reader: on(0, "schema_version", "SELECT").
		and(0, "outbox", "SELECT").
		and(6, "scheduled", "SELECT").
		and(0, "claims", "SELECT").
		and(0, "parked", "SELECT").
		and(0, "watermarks", "SELECT").list(),
}

type grants []Grant

func on(since int, name, privileges string) grants { return grants(nil).and(since, name, privileges) }

func (g grants) and(since int, name, privileges string) grants {
	for privilege := range strings.SplitSeq(privileges, ", ") {
		privilege, column, _ := strings.Cut(privilege, " ")
		g = append(g, Grant{Privilege: privilege, Column: strings.Trim(column, "()"), On: name, since: since})
	}
	return g
}

func (g grants) list() []Grant { return append([]Grant{{Privilege: "USAGE"}}, g...) }

// Grants are what a role needs on a schema of a version. It is nil for Migrate, which
// needs the schema itself.
func (r Role) Grants(version int) (all []Grant) {
	for _, g := range rights[r] {
		if g.since <= version {
			all = append(all, g)
		}
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
		return "SCHEMA " + named(schemaName)
	case tokens:
		return "SEQUENCE " + named(schemaName) + "." + g.On
	}
	return named(schemaName) + "." + g.On
}

// named quotes a schema's name where that is needed.
func named(schemaName string) string {
	if schemaName == "" || schemaName == schema.Default {
		return schema.Default
	}
	return schema.Quote(schemaName)
}

// SQL grants all of the grants to a role, a statement for each object. to is quoted, if
// it needs to be.
func SQL(all []Grant, schemaName, to string) string {
	var statements []string
	for i := 0; i < len(all); {
		var privileges []string
		object := all[i].object(schemaName)
		for ; i < len(all) && all[i].object(schemaName) == object; i++ {
			privileges = append(privileges, all[i].privilege())
		}
		statements = append(statements, fmt.Sprintf("GRANT %s ON %s TO %s;", strings.Join(privileges, ", "), object, to))
	}
	return strings.Join(statements, "\n")
}
