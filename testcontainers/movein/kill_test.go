package movein_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/lib/pq"

	"github.com/oncemill/oncemill/outbox/watermillsql"
	"github.com/oncemill/oncemill/testcontainers/internal/actor"
	"github.com/oncemill/oncemill/testcontainers/internal/pqdial"
)

// roleVariable makes the test binary play the role that it holds, as JSON.
const roleVariable = "ONCEMILL_TEST_MOVEIN_ROLE"

// A role is a drain that kills itself. It says "dying" and what it was about.
type role struct {
	Postgres string // URL
	Fault    fault  // "" for none
	After    int    // how often it spares itself that
}

type fault string

const (
	dieBeforeCommit fault = "die before a COMMIT is sent"
	dieWithinCommit fault = "die once a COMMIT is sent"
)

// A performer is a process that plays a role.
type performer struct {
	actor.Player
	role
}

func play(text string) error {
	a := &performer{}
	if err := json.Unmarshal([]byte(text), &a.role); err != nil {
		return err
	}
	connector, err := pq.NewConnector(a.Postgres)
	if err != nil {
		return err
	}
	connector.Dialer(pqdial.AroundCommits(func() { a.opportunity(dieBeforeCommit) }, func() { a.opportunity(dieWithinCommit) }))
	db := sql.OpenDB(connector)
	defer db.Close()
	done, err := (&watermillsql.Drain{DB: db, Topic: "events_to_forward", Start: watermillsql.FromBeginning, Batch: 10}).Run(context.Background())
	a.Say("moved %d", done.Moved)
	return err
}

// opportunity is called where a fault could happen, and makes it happen if it is the
// actor's.
func (a *performer) opportunity(f fault) {
	if a.Fault == f {
		a.Suffer(false, a.After, string(f))
	}
}

// Each of its deaths leaves a batch that is moved, or one that is not.
func TestADrainThatIsKilledAgainAndAgainMovesEachMessageOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	must(t, s.subscribeOld().SubscribeInitialize("events_to_forward"))
	s.exec(`CREATE TABLE orders (id text PRIMARY KEY)`)
	const n = 300
	for i := range n {
		must(t, s.order(fmt.Sprint("order-", i), false, func(tx *sql.Tx, msg *message.Message) error { return publishOld(tx, msg) }))
	}
	kill := func(f fault, after int) {
		t.Helper()
		p := actor.Start(t, string(f), roleVariable, role{Postgres: s.dbURL, Fault: f, After: after})
		p.Await("dying", 1)
		p.AwaitDeath()
	}
	for after := range 3 {
		kill(dieBeforeCommit, after)
		kill(dieWithinCommit, after)
	}
	if moved := s.count(`SELECT count(*) FROM oncemill.outbox`); moved == 0 || moved == n {
		t.Errorf("%d messages were moved meanwhile", moved)
	}
	p := actor.Start(t, "the last", roleVariable, role{Postgres: s.dbURL})
	must(t, p.Wait())
	once(t, "moved", s.column(`SELECT uuid FROM oncemill.outbox`), s.ordered())
	var inOrder bool
	must(t, s.db.QueryRow(`SELECT bool_and(o.uuid = 'order-' || n - 1) FROM (SELECT uuid, row_number() OVER (ORDER BY id) AS n FROM oncemill.outbox) AS o`).Scan(&inOrder))
	if !inOrder {
		t.Error("the messages are in another order")
	}
}
