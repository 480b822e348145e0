package effects_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"net"
	"os/signal"
	"syscall"
	"time"

	"github.com/lib/pq"
	"github.com/nats-io/nats.go"

	"github.com/oncemill/oncemill/testcontainers/internal/actor"
	"github.com/oncemill/oncemill/testcontainers/internal/pqdial"
)

// roleVariable makes the test binary play the role that it holds, as JSON.
const roleVariable = "ONCEMILL_TEST_EFFECTS_ROLE"

// A role is what a process does. It says on its standard output, a line each:
//
//	running              it has begun to work
//	replied KEY          the provider has answered, and nothing is settled yet
//	settled KEY          a claim was settled by its attempt
//	duplicate KEY        a message was handled before
//	doubt KEY ...        an effect came to be in doubt
//	asking KEY           a resolver begins to ask
//	resolved KEY VERDICT a resolver has resolved a claim
//	failed OP KEY ...    a call has failed
//	dying WHAT           it does to itself what its Fault says
//	freezing WHAT        the same
type role struct {
	Kind     string // "worker", "resolver" or "relay"
	Name     string
	Postgres string // URL
	NATS     string // URL
	Provider string // URL
	Fault    fault  // what it does to itself
	After    int    // how often it spares itself that

	Policy      policy
	Topic       string // what it subscribes to
	Receipts    string // where it sends a message for each effect
	MaxInFlight int
	MaxErrors   int  // after so many a message is a dead letter
	Mute        bool // the worker has no resolver

	Lease        time.Duration
	KeyLifetime  time.Duration
	LandingBound time.Duration
	AskTimeout   time.Duration
}

// A policy is by what a provider can do.
type policy string

const (
	idempotent policy = "idempotent"
	queryable  policy = "queryable"
	opaque     policy = "opaque"
)

// A fault is what a process does to itself, and at which step.
type fault string

const (
	dieBeforeClaim    fault = "die before the claim's COMMIT is sent"
	dieWithinClaim    fault = "die once the claim's COMMIT is sent"
	dieAfterClaim     fault = "die after the claim, before the request is written"
	dieAfterWriting   fault = "die after the request is written"
	dieAfterExecution fault = "die after the effect, before the reply is read"
	dieAfterReply     fault = "die after the reply, before settle"
	dieBeforeSettle   fault = "die before the settlement's COMMIT is sent"
	dieWithinSettle   fault = "die once the settlement's COMMIT is sent"
	dieBeforeAck      fault = "die after settle, before the ack"
	dieBeforePark     fault = "die before the COMMIT of a doubt is sent"
	dieWithinPark     fault = "die once the COMMIT of a doubt is sent"
	dieAsking         fault = "die while the provider is asked"
	dieBeforeRelease  fault = "die before a release's COMMIT is sent"
	dieWithinRelease  fault = "die once a release's COMMIT is sent"
	freezeAfterClaim  fault = "freeze after the claim, before the request is written"
	freezeAfterReply  fault = "freeze after the reply, before settle"
	freezeAsking      fault = "freeze when the provider has said what became of an effect"
)

func (f fault) freezes() bool {
	return f == freezeAfterClaim || f == freezeAfterReply || f == freezeAsking
}

// ackWait is how long the broker waits for a sign of life of a worker's messages.
const ackWait = time.Second

// A performer is a process that plays a role.
type performer struct {
	actor.Player
	role
	db *sql.DB
	nc *nats.Conn
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
	connector.Dialer(pqdial.Dialer(func(conn net.Conn) net.Conn { return &watchedConn{Conn: conn, a: a} }))
	a.db = sql.OpenDB(connector)
	defer a.db.Close()
	a.db.SetMaxIdleConns(a.MaxInFlight + 8) // or most transactions would begin with a new connection
	a.db.SetMaxOpenConns(a.MaxInFlight + 8)
	a.nc, err = nats.Connect(a.NATS, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond), nats.RetryOnFailedConnect(true))
	if err != nil {
		return err
	}
	defer a.nc.Close()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	switch a.Kind {
	case "relay":
		return a.relay(ctx)
	case "resolver":
		a.Say("running")
		return a.resolver(a.guard()).Run(ctx)
	}
	return a.work(ctx)
}

// opportunity is called where a fault could happen, and makes it happen if it is the
// actor's.
func (a *performer) opportunity(f fault, what string) {
	if a.Fault == f {
		a.Suffer(f.freezes(), a.After, what)
	}
}
