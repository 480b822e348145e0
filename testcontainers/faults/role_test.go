package faults_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"net"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/lib/pq"
	"github.com/nats-io/nats.go"

	"github.com/oncemill/oncemill/testcontainers/internal/actor"
)

// roleVariable makes the test binary play the role that it holds, as JSON.
const roleVariable = "ONCEMILL_TEST_ROLE"

// A role is what a process does. It says on its standard output, a line each:
//
//	running             it has begun to work
//	handling KEY        a handler has written its effect
//	committed KEY       its transaction is committed
//	duplicate KEY       a message was handled before
//	failed OP KEY ...   Once has failed
//	published N         a batch of N rows is acknowledged by the broker
//	unpublished ...     a batch is not, or not all of it
//	unreachable         no connection to Postgres was to be had
//	dying KEY           it does to itself what its Fault says
//	freezing KEY        the same
type role struct {
	Kind     string // "worker" or "relay"
	Name     string // noted in the effects
	Postgres string // URL
	NATS     string // URL
	Fault    fault  // what it does to itself
	After    int    // how often it spares itself that

	// Of a worker.
	Handler      string // the consumer of its claims
	Topic        string // what it subscribes to
	Receipts     string // where it sends a message for each that it handles; "": nowhere
	Subscriber   string // "": Oncemill's; "stock jetstream" or "stock nats": Watermill's
	MaxInFlight  int
	MaxErrors    int
	LockWait     time.Duration
	IdleTimeout  time.Duration
	DrainTimeout time.Duration
	FailEvery    int // the handler returns an error on every n-th run; 0: never

	// Of a relay.
	Batch          int
	PublishTimeout time.Duration
}

type fault string

const (
	dieInHandler         fault = "die in the handler, after its writes"
	dieBeforeAck         fault = "die after the commit, before the ack"
	freezeInHandler      fault = "freeze in the handler, after its writes"
	dieAfterPublishing   fault = "die after publishing, before the commit"
	freezeWithinAPublish fault = "freeze when half of a batch is published"
)

// ackWait is how long the broker waits for a sign of life of a worker's
// messages.
const ackWait = time.Second

// A performer is a process that plays a role.
type performer struct {
	actor.Player
	role
	db   *sql.DB
	nc   *nats.Conn
	runs atomic.Int64 // of the handler
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
	connector.Dialer(dialer{a})
	a.db = sql.OpenDB(connector)
	defer a.db.Close()
	a.db.SetMaxIdleConns(a.MaxInFlight + 2) // or most transactions would begin with a new connection
	a.nc, err = nats.Connect(a.NATS, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond),
		nats.RetryOnFailedConnect(true))
	if err != nil {
		return err
	}
	defer a.nc.Close()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if a.Kind == "relay" {
		return a.relay(ctx)
	}
	return a.work(ctx)
}

// opportunity is called where a fault could happen to a message, and makes it
// happen if it is the actor's.
func (a *performer) opportunity(f fault, key string) {
	if a.Fault == f {
		a.Suffer(f == freezeInHandler || f == freezeWithinAPublish, a.After, key)
	}
}

// dialer tells when Postgres is away.
type dialer struct{ a *performer }

func (d dialer) Dial(network, address string) (net.Conn, error) {
	return d.DialTimeout(network, address, 0)
}

func (d dialer) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	ctx := context.Background()
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	return d.DialContext(ctx, network, address)
}

func (d dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		d.a.Say("unreachable")
	}
	return conn, err
}
