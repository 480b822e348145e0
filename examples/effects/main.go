// Effects shows what Oncemill does for effects outside of Postgres: it sends a thousand
// e-mails, or charges a thousand cards, through real crashes and a provider that loses
// its replies. Then a checker compares the provider's own ledger with the claims.
//
//	effects -kind email -messages 1000
//	effects -kind payment -messages 1000
//
// The program is all of the processes that take part: without a role as its argument
// it is the conductor, who starts the others, kills workers, and reports.
//
//	producer ──orders──▶ workers ──outbox──▶ relay ──receipts──▶
//	                        │
//	                     provider (an SMTP server, or a Stripe) ──▶ ledger ──▶ check
//
// Read email.go or payment.go first, then worker.go.
package main

import (
	"context"
	"os"

	"github.com/oncemill/oncemill/examples/internal/crew"
	"github.com/oncemill/oncemill/examples/internal/streams"
)

// roles are what a process does: until ctx ends, or until it is done.
var roles = map[string]func(ctx context.Context, s setting) error{
	roleNATS:     func(ctx context.Context, _ setting) error { return streams.Serve(ctx, crew.Say) },
	roleProvider: func(ctx context.Context, s setting) error { return s.kind().serve(ctx, s) },
	roleProducer: produce,
	roleWorker:   work,
	roleRelay:    relay,
	roleChecker:  check,
}

const (
	roleNATS     = "nats"
	roleProvider = "provider"
	roleProducer = "producer"
	roleWorker   = "worker"
	roleRelay    = "relay"
	roleChecker  = "check"
)

// A setting is what the conductor tells the other processes.
type setting struct {
	Kind     string // of effect: a key of kinds
	Messages int    // how many orders there are
	Dir      string // of the provider: its ledger, and an SMTP server's certificate
	Postgres string // URL of the database
	NATS     string // URL of the broker
	Provider string // where it is

	Place, Life int    // which worker it is, from 1, and the how manyth in its place
	Moment      moment // at which it is killed; "": it is spared
	Lifetime    int    // the how manyth time that it comes to the moment
}

func main() { os.Exit(crew.Main(roles, conduct)) }
