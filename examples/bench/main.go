// Bench measures Oncemill beside what people run without it, and beside what Postgres
// and JetStream can do at all, on this machine:
//
//	bench -turn 8s -repeats 5
//	bench -quick
//	bench -only once-batched,plain-tx -cpuprofile worker.prof
//
// It starts everything that it measures, on the loopback interface and with files in the
// temporary directory, so that all write to the same disk, through to it. The contenders
// take turns, each turn with a worker process of its own. After each turn it counts what
// is in the tables and streams, and a turn that has not done each of its messages once
// fails the run.
//
// The program is all of the processes that take part: without the name of a role it is the
// conductor. The contenders are in contenders.go, and each role is a file.
package main

import (
	"context"
	"os"
	"runtime/debug"

	"github.com/oncemill/oncemill/examples/internal/crew"
	"github.com/oncemill/oncemill/examples/internal/streams"
)

// roles are what a process does: until ctx ends.
var roles = map[string]func(ctx context.Context, s setting) error{
	"broker":    serve,
	"once":      consumeOnce,
	"plain":     consumePlain,
	"stock":     consumeStock,
	"shape":     loopShape,
	"sql":       loopSQL,
	"relay":     relay,
	"forwarder": forward,
	"publish":   publish,
}

// A setting is what the conductor tells the other processes.
type setting struct {
	Postgres string // URL of the database, perhaps through a proxy
	NATS     string // URL of the server
	Topic    string // where messages come from
	Out      string // where what is returned goes
	Messages int    // how many there are, for those who count themselves

	InFlight int  // messages at a time
	Batch    int  // of a group commit, of the loops, or of the forwarder's subscriber
	AckAsync bool // watermill-nats does not wait for the server to confirm an ack
	Hot      bool // the effect is an UPDATE of one of a few rows
	Purge    bool // old claims are purged meanwhile
	Profile  string
}

// A process whose heap has a few megabytes collects garbage all the time. All contenders are
// spared that alike.
const gcPercent = 400

func main() {
	debug.SetGCPercent(gcPercent)
	os.Exit(crew.Main(roles, conduct))
}

func serve(ctx context.Context, _ setting) error { return streams.Serve(ctx, crew.Say) }
