// Soak runs a usual deployment for long, at 70% of what it can do, and watches what must not
// grow: memory, goroutines, tables, connections, and the ledger's drift, which is how many
// messages were sent and have not had their effect.
//
//	soak -duration 1h -csv soak.csv -svg soak.svg
//
// It starts a Postgres that writes through to the disk, a NATS server, and these processes:
//
//	producer ──orders──▶ 2 workers (Once, batched) ──outbox──▶ 2 relays ──children──▶ downstream
//	         ──charges─▶ guarded (Guard) ──▶ provider; ──outbox──▶ relays ──receipts─▶ downstream
//
// First the producer sends as much as the others take, which measures the capacity; then the
// soak begins. At the end the ledgers are compared, message by message, and judge.go says
// what has grown.
//
// The program is all of the processes that take part: without a role as its argument it is
// the conductor, who starts the servers and the others.
package main

import (
	"context"
	"os"
	"time"

	"github.com/oncemill/oncemill/examples/internal/crew"
	"github.com/oncemill/oncemill/examples/internal/streams"
)

// roles are what a process does until ctx ends.
var roles = map[string]func(ctx context.Context, s setting) error{
	roleProducer:   beat(produce),
	roleWorker:     beat(work),
	roleRelay:      beat(relay),
	roleGuarded:    beat(workGuarded),
	roleDownstream: beat(receive),
	roleProvider:   beat(provide),
	roleNATS:       beat(serve),
}

const (
	roleProducer   = "producer"
	roleWorker     = "worker"
	roleRelay      = "relay"
	roleGuarded    = "guarded"
	roleDownstream = "downstream"
	roleProvider   = "provider"
	roleNATS       = "nats"
)

// places is how many processes there are in each role, in the order in which they are shown.
var places = []struct {
	role  string
	count int
	ours  bool // made with Oncemill, so that it is judged
}{
	{roleWorker, 2, true}, {roleRelay, 2, true}, {roleGuarded, 1, true}, {roleDownstream, 1, true}, {roleProducer, 1, true},
	{roleProvider, 1, false}, {roleNATS, 1, false},
}

// The topics.
const (
	orders      = "orders"
	charges     = "charges"
	children    = "children" // of orders
	receipts    = "receipts" // of charges
	deadLetters = "dead-letter"
)

// chargesEvery is how many messages there are to one for Guard.
const chargesEvery = 20

// retention is how long claims, events and published rows are kept: as short as may be, so
// that the tables are soon as large as they get.
const retention = 10 * time.Minute

// A setting is what the conductor tells the other processes.
type setting struct {
	Postgres string  // URL
	NATS     string  // URL
	Provider string  // URL
	Rate     float64 // messages a second that the producer sends; 0: as many as the others take
	First    int64   // the number of the producer's first message
}

func main() { os.Exit(crew.Main(roles, conduct)) }

func serve(ctx context.Context, _ setting) error { return streams.Serve(ctx, crew.Say) }
