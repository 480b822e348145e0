// Quickstart shows what Oncemill does: it sends orders through real crashes, once
// with it and once without, and has an auditor count what came of them.
//
//	quickstart -messages 10000
//	quickstart -messages 10000 -broker kafka
//
// The program is all of the processes that take part: without an argument it is
// the conductor, who starts the others, kills some of them, and reports. Each of
// them is a file:
//
//	producer ──orders──▶ billing ──outbox──▶ relay ──invoices──▶ shipping
//
// Read billing.go first.
package main

import (
	"context"
	"os"

	"github.com/oncemill/oncemill/examples/internal/crew"
)

// roles are what a process does: until ctx ends, or until it is done.
var roles = map[string]func(ctx context.Context, s setting) error{
	"nats":     serveNATS,
	"kafka":    serveKafka,
	"producer": produce,
	"billing":  bill,
	"relay":    relay,
	"shipping": ship,
	"audit":    audit,
}

// A setting is what the conductor tells the other processes.
type setting struct {
	Oncemill bool   // or the same without it
	Messages int    // how many orders there are
	Postgres string // URL of this run's database
	Broker   string // which one it is: a key of brands
	Address  string // of its server

	Place    int  // which it is of those in its role, from 1
	Faults   bool // things go wrong: see faults.go
	Lifetime int  // after so many messages the process is killed at its worst moment; 0: it is spared
	CutOff   bool // in the middle of its life it cannot reach the broker, if that is Kafka
}

func main() { os.Exit(crew.Main(roles, conduct)) }
