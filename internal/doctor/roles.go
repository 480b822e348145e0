package doctor

import "github.com/oncemill/oncemill/internal/grants"

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

// rights are what each role needs, but for Migrate.
//
// Who deletes with FOR UPDATE SKIP LOCKED, as the purge and the relay do, needs UPDATE of
// some column, which is one that means least to others.
var rights = map[Role]grants.List{
	Producer: useSchema().From(6, "scheduled", "INSERT").And("outbox", "INSERT"),
	Worker: useSchema().And("schema_version", "SELECT").
		And("claims", "SELECT, INSERT, UPDATE (settled_at), DELETE").
		And("handler_errors", "SELECT, INSERT, UPDATE, DELETE").
		And("events", "SELECT, INSERT, UPDATE (id), DELETE").
		And("watermarks", "SELECT, INSERT, UPDATE").
		And("outbox", "INSERT").
		From(6, "scheduled", "INSERT"),
	Effects: useSchema().And("schema_version", "SELECT").
		And("claims", "SELECT, INSERT, UPDATE, DELETE").
		And(grants.Tokens, "USAGE").
		And("parked", "SELECT, INSERT, DELETE").
		And("handler_errors", "SELECT, INSERT, UPDATE, DELETE").
		And("events", "SELECT, INSERT, UPDATE (id), DELETE").
		And("watermarks", "SELECT, INSERT, UPDATE").
		And("outbox", "INSERT").
		From(6, "scheduled", "INSERT"),
	Relay: useSchema().And("schema_version", "SELECT").
		And("outbox", "SELECT, INSERT, UPDATE, DELETE").
		From(6, "scheduled", "SELECT, UPDATE (deliver_after), DELETE").
		From(6, "published", "SELECT, INSERT, UPDATE (id), DELETE"),
	Guard: useSchema().And("schema_version", "SELECT").
		And("claims", "SELECT, INSERT, UPDATE, DELETE").
		And(grants.Tokens, "USAGE").
		And("parked", "SELECT, DELETE").
		And("handler_errors", "SELECT, UPDATE (errors), DELETE").
		And("events", "SELECT, INSERT, UPDATE (id), DELETE").
		And("watermarks", "SELECT, INSERT, UPDATE").
		And("outbox", "INSERT").
		And("secrets", "SELECT, INSERT"),
	Operator: useSchema().And("schema_version", "SELECT").
		And("claims", "SELECT, UPDATE, DELETE").
		And(grants.Tokens, "USAGE").
		And("parked", "SELECT, DELETE").
		And("events", "SELECT, INSERT").
		And("handler_errors", "SELECT, UPDATE (errors), DELETE").
		And("watermarks", "SELECT, INSERT, UPDATE").
		And("outbox", "SELECT, INSERT, UPDATE, DELETE").
		From(6, "scheduled", "SELECT, DELETE").
		From(6, "published", "SELECT, UPDATE (id), DELETE"),
	Reader: useSchema().And("schema_version", "SELECT").
		And("outbox", "SELECT").
		From(6, "scheduled", "SELECT").
		And("claims", "SELECT").
		And("parked", "SELECT").
		And("handler_errors", "SELECT").
		And("watermarks", "SELECT"),
}

// useSchema is USAGE of the schema, without which nothing in it is seen.
func useSchema() grants.List { return grants.On("", "USAGE") }

// Grants are what a role needs on a schema of a version. It is nil for Migrate, which
// needs the schema itself.
func (r Role) Grants(version int) (all grants.List) {
	for _, g := range rights[r] {
		if g.Since <= version {
			all = append(all, g)
		}
	}
	return all
}
