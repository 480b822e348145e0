// Quickstart shows what Oncemill does: it sends messages through real crashes,
// once with it and once without, and counts what came of them.
//
//	quickstart -messages 10000
//
// The program is all of the processes that take part. Each is a role: the first
// argument, or the conductor if there is none.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
)

// A role is a process of the demo. It runs until ctx ends, or until it is done.
type role func(ctx context.Context, s setting) error

var roles = map[string]role{
	"producer": produce,
	"billing":  bill,
	"relay":    relay,
	"shipping": ship,
	"audit":    audit,
}

// A setting is what the conductor tells the other processes.
type setting struct {
	Oncemill bool   // or the same without it
	Postgres string // URL of this run's database
	NATS     string // URL of the server
	From, To int    // for the producer: the orders to send

	// For the relay: kill yourself once the broker has acknowledged a batch,
	// before it is deleted from the outbox.
	DieAfterPublish bool
}

const settingVariable = "QUICKSTART_SETTING"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if run, ok := roles[first(os.Args[1:])]; ok {
		err = play(ctx, run)
	} else {
		err = conduct(ctx, os.Args[1:])
	}
	if err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
	if ctx.Err() != nil && len(os.Args) < 2 {
		os.Exit(130)
	}
}

// play plays one role. Standard input is held open by the conductor: when it
// ends, so has the conductor, however it ended.
func play(ctx context.Context, run role) error {
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	var s setting
	if err := json.Unmarshal([]byte(os.Getenv(settingVariable)), &s); err != nil {
		return fmt.Errorf("%s: %w", settingVariable, err)
	}
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1))
		os.Exit(1)
	}()
	return run(ctx, s)
}

func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}
