package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/oncemill/oncemill/testcontainers/postgres"
)

// A profile is a configuration that people run, and that loses what was acknowledged. The
// suite shows how much. Oncemill warns of each when a program starts, and in its doctor.
type profile struct {
	name, what string

	settings map[string]string // of Postgres
	async    bool              // the standby is asynchronous
	replicas int               // of each stream; 0: one on each node
	late     bool              // the producer sends messages that are older than the retention
	faults   func(r *run) []fault
}

var profiles = []*profile{
	{
		name: "async-commit", what: "synchronous_commit is off: COMMIT returns before the transaction is on the disk",
		settings: map[string]string{"synchronous_commit": "off"},
	},
	{
		name: "async-standby", what: "the standby is asynchronous, lags, and is promoted",
		async: true, faults: func(*run) []fault { return []fault{failingOverToALaggard} },
	},
	{
		name: "unreplicated", what: "each stream is on one node, and its machine loses power",
		replicas: 1, faults: (*run).powerLosses,
	},
	{
		name: "short-retention", what: "claims are kept for 10 minutes, and messages come 2 hours late",
		late: true,
	},
}

// safe is the profile of those who want to lose nothing.
var safe = &profile{name: "", what: ""}

func profileNamed(name string) (*profile, error) {
	if name == "" {
		return safe, nil
	}
	var names []string
	for _, p := range profiles {
		if p.name == name {
			return p, nil
		}
		names = append(names, p.name)
	}
	return nil, fmt.Errorf("-profile is %q: must be one of %v, or empty", name, names)
}

func (p *profile) pair(bin string) postgres.PairOptions {
	// Sooner than LockWait is over, or of a deadlock there would be seen only that a lock was
	// not to be had.
	settings := map[string]string{"deadlock_timeout": "200ms"}
	maps.Copy(settings, p.settings)
	// It is processes that die here, not the machine, so nothing need be written through.
	return postgres.PairOptions{Bin: bin, Volatile: true, Settings: settings, Async: p.async}
}

// failingOverToALaggard promotes a standby that was busy with something else for a moment.
var failingOverToALaggard = fault{"Postgres failed over to a standby that lags", "postgres", func(ctx context.Context, s *strike) (string, error) {
	standby := s.site.pair.Standby()
	if err := standby.Freeze(); err != nil {
		return "", err
	}
	lag := between(s.draws, 100*time.Millisecond, 500*time.Millisecond)
	sleep(ctx, lag)
	what, err := failingOver.happen(ctx, s) // which thaws it
	return fmt.Sprintf("%s; it lagged by %v", what, lag.Round(time.Millisecond)), err
}}

// powerLosses are that of the machine of each node. A process that is killed leaves what it
// has written to the system; a machine leaves what was written through to the disk, which
// nats-server does every two minutes. So the node is stopped for a moment, its files are
// copied, and after a while it is killed, and has the files as they were.
func (r *run) powerLosses() []fault {
	nats, ok := r.site.broker.(*cluster)
	if !ok {
		return nil
	}
	return []fault{{"NATS node without power", "broker", func(ctx context.Context, s *strike) (string, error) {
		stream := []string{"work", "events"}[s.draws.IntN(2)]
		node, err := nats.Leader(ctx, stream)
		if err != nil {
			return "", err
		}
		store := filepath.Join(node.Dir(), "jetstream")
		onDisk := store + ".disk"
		if err := errors.Join(node.Freeze(), copyFiles(store, onDisk), node.Thaw()); err != nil {
			return "", err
		}
		since := between(s.draws, time.Second, 4*time.Second)
		sleep(ctx, since)
		if err := errors.Join(node.Kill(), os.RemoveAll(store), os.Rename(onDisk, store)); err != nil {
			return "", err
		}
		return fmt.Sprintf("the node with stream %s loses power, and what it has written in %v", stream, since.Round(time.Millisecond)),
			errors.Join(node.Start(context.WithoutCancel(ctx)), nats.healthy(ctx))
	}}}
}

func copyFiles(from, to string) error {
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("copy %s: %w: %s", from, err, out)
	}
	return nil
}
