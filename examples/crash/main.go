// Crash is the run that a sceptic would make before adopting Oncemill: producers, workers,
// relays, guards and consumers downstream, each a process of its own, on a Postgres with a
// synchronous standby and on a NATS cluster of three nodes with replicated streams, or on
// Kafka; and a nemesis that kills, freezes, cuts off and redeploys them and their servers.
// At the end a checker compares all ledgers, and prints the history of what does not fit.
//
//	crash -seconds 60 -seed 7
//	crash -seconds 60 -seed 7 -broker kafka
//
// The program is all of the processes that take part: without a role as its argument it
// is the conductor, who starts the servers and the others.
//
//	producer ──single, batch──▶ workers (Once) ──outbox──▶ relays ──children──▶ downstream
//	         ──charges, mails──▶ guarded (Guard) ──▶ provider
//	clerks ──outbox, by key──▶ relays ──ordered──▶ downstream
//	agents ──HTTP──▶ guards; agents ──▶ provider
//
// Read check.go for what is promised, and nemesis.go for what goes wrong.
package main

import (
	"context"
	"os"

	"github.com/oncemill/oncemill/examples/internal/crew"
)

// roles are what a process does until ctx ends.
var roles = map[string]func(ctx context.Context, s setting) error{
	roleProducer:   produce,
	roleClerk:      clerk,
	roleSingle:     workOnce,
	roleBatch:      workOnce,
	roleGuarded:    workGuarded,
	roleDownstream: receive,
	roleRelay:      relay,
	roleGuard:      serveGuard,
	roleAgent:      act,
	roleProvider:   provide,
}

const (
	roleProducer   = "producer"
	roleClerk      = "clerk"
	roleSingle     = "single"
	roleBatch      = "batch"
	roleGuarded    = "guarded"
	roleDownstream = "downstream"
	roleRelay      = "relay"
	roleGuard      = "guard"
	roleAgent      = "agent"
	roleProvider   = "provider"
)

// The topics. Messages of single and batch are handled with Once, each in a transaction of
// its own or in batches; those of charges and mails with Guard.
const (
	single      = "single"
	batch       = "batch"
	charges     = "charges"
	mails       = "mails"
	childrenA   = "children-a" // both get each child, under one UUID
	childrenB   = "children-b"
	ordered     = "ordered"
	receipts    = "receipts"
	deadLetters = "dead-letter"
)

var work, downstream = []string{single, batch, charges, mails}, []string{childrenA, childrenB, ordered, receipts}

// running is what a process says when it does its work.
const running = "running"

// A setting is what the conductor tells the other processes.
type setting struct {
	Role        string
	Place, Life int // which it is of those in its role, from 1, and the how manyth in its place
	Seed        uint64
	Dir         string // of traces and ledgers

	Postgres  string   // URL, through the role's proxies
	Broker    string   // nats or kafka
	Addresses []string // of the broker, through the role's proxies
	Provider  string   // where it is
	Listen    string   // of a guard
	Guards    []string // URLs, through the agents' proxies

	Rate    int  // messages a second that a producer sends for Once
	History int  // messages that were handled long before the run
	Late    bool // it sends new messages that are as old
}

func main() { os.Exit(crew.Main(roles, conduct)) }
