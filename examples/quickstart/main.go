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
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
)

// A role is what a process does: until ctx ends, or until it is done.
type role func(ctx context.Context, s setting) error

var roles = map[string]role{
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

// settingVariable holds the setting, as JSON. It is not an argument because
// everybody may read those, and Postgres's URL has a password.
const settingVariable = "QUICKSTART_SETTING"

func main() { os.Exit(start()) }

func start() (exitCode int) {
	// However often they come, everything is cleared away, which takes a second.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if len(os.Args) == 2 && roles[os.Args[1]] != nil {
		if err := play(ctx, roles[os.Args[1]]); err != nil {
			slog.Error("ended", "error", err)
			return 1
		}
		return 0
	}
	switch err := conduct(ctx, os.Args[1:]); {
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "quickstart: interrupted, everything is stopped")
		return 130
	case err != nil:
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		return 1
	}
	return 0
}

// play plays one role. The conductor holds standard input open: when it ends, so
// has the conductor, however that happened.
func play(ctx context.Context, do role) error {
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	var s setting
	if err := json.Unmarshal([]byte(os.Getenv(settingVariable)), &s); err != nil {
		return fmt.Errorf("%s: %w (this is for the conductor to start)", settingVariable, err)
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
	return do(ctx, s)
}
