package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/examples/internal/crew"
	"github.com/oncemill/oncemill/examples/internal/screen"
	"github.com/oncemill/oncemill/testcontainers/postgres"
)

// A run sends all orders through, with Oncemill or without. One goroutine has the
// say over everything in it.
type run struct {
	name     string
	database string
	dir      string // for logs
	server   *postgres.Server
	setting  setting // for the children, and whether it is with Oncemill

	db     *sql.DB
	broker broker
	screen *screen.Screen

	crew    *crew.Crew
	faults  map[string]int // by kind
	doomed  map[string]int // by role: that are to be killed, or were
	killed  map[string]int // by role
	took    time.Duration
	verdict verdict
}

// conduct sets everything up, has the work done, and has it audited.
func (r *run) conduct(ctx context.Context) (err error) {
	r.crew = crew.New(r.dir)
	r.crew.Heard, r.crew.Watch = r.heard, func() error { return r.screen.Err }
	r.faults, r.doomed, r.killed = make(map[string]int), make(map[string]int), make(map[string]int)
	defer r.crew.KillAll(r.setting.Broker)
	r.screen = screen.New(os.Stdout)
	r.screen.Title("%s orders %s", screen.Thousands(r.setting.Messages), r.name)
	defer r.screen.End()
	if err := r.startBroker(ctx); err != nil {
		return err
	}
	defer r.broker.close()
	if err := r.createDatabase(ctx); err != nil {
		return err
	}
	defer r.db.Close()

	r.screen.Restart()
	begun := time.Now()
	if err := r.work(ctx); err != nil {
		return err
	}
	r.took = time.Since(begun)
	if err := r.crew.StopAll(ctx, r.setting.Broker); err != nil {
		return err
	}
	answer, err := r.ask(ctx, "audit")
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(answer), &r.verdict)
}

func (r *run) brand() *brand { return r.setting.brand() }

func (r *run) startBroker(ctx context.Context) (err error) {
	if r.setting.Address, err = r.ask(ctx, r.setting.Broker); err != nil {
		return err
	}
	if r.broker, err = r.setting.connect(nil); err != nil {
		return err
	}
	if err = r.broker.createTopics(ctx); err != nil {
		r.broker.close()
	}
	return err
}

func (r *run) createDatabase(ctx context.Context) (err error) {
	if r.setting.Postgres, err = crew.CreateDatabase(ctx, r.server, r.database); err != nil {
		return err
	}
	if r.db, err = crew.OpenDB(r.setting.Postgres); err != nil {
		return err
	}
	if r.setting.Oncemill {
		if err := oncemill.Migrate(ctx, r.db, ""); err != nil {
			return err
		}
	}
	// Without any constraint: what happens twice has to be seen.
	_, err = r.db.ExecContext(ctx, `CREATE TABLE bills (order_number text); CREATE TABLE shipments (order_number text)`)
	if err == nil && !r.brand().counts {
		_, err = r.db.ExecContext(ctx, createDeliveries)
	}
	return err
}

// start starts everybody.
func (r *run) start() error {
	for place := range r.brand().workers {
		for _, role := range []string{"billing", "shipping"} {
			if _, err := r.spawn(role, place+1); err != nil {
				return err
			}
		}
	}
	if r.setting.Oncemill { // or there is no outbox to relay
		if _, err := r.spawn("relay", 1); err != nil {
			return err
		}
	}
	_, err := r.spawn("producer", 1)
	return err
}

// work has everybody work until all orders are through.
func (r *run) work(ctx context.Context) error {
	if err := r.start(); err != nil {
		return err
	}
	var before progress
	return r.crew.Attend(ctx, func() (bool, error) {
		p, err := r.look(ctx)
		if err != nil || p == before {
			return false, err
		}
		before = p
		r.crew.Changed()
		r.screen.Status(fmt.Sprintf("%v; %s faults", p, screen.Thousands(r.troubles())))
		return p.done, nil
	})
}

// spawn starts a process in a role.
func (r *run) spawn(role string, place int) (*crew.Child, error) {
	s := r.setting
	s.Place = place
	s.Faults = role == "billing" || role == "shipping"
	if mortal(role) && r.doomed[role] < kills {
		r.doomed[role]++
		// All of the kills take place well before the end of the run.
		s.Lifetime = s.Messages / (kills + 2) / s.brand().workers
		s.CutOff = r.doomed[role]%2 == 1 // every other one
	}
	c, err := r.crew.Spawn(role, s)
	if err != nil {
		return nil, err
	}
	c.Place = place
	c.MayEnd = role == "producer" || role == "audit"
	return c, nil
}

// kills is how often each of the workers and the relay is killed in a run.
const kills = 6

// mortal tells whether some in a role are to be killed.
func mortal(role string) bool { return role == "billing" || role == "shipping" || role == "relay" }

// heard deals with one thing that a child said.
func (r *run) heard(from *crew.Child, line string) (taken bool, err error) {
	switch {
	case line == crew.KillMe:
		return true, r.replace(from)
	case slices.Contains([]string{saysLostAck, saysLostCommit, saysError, saysPanic}, line):
		r.fault(line, from.Role)
		return true, nil
	}
	return false, nil
}

// replace kills a worker or the relay, and starts another one.
func (r *run) replace(c *crew.Child) error {
	c.Kill()
	r.killed[c.Role]++
	if c.Role == "relay" {
		r.fault(relayKilled, c.Role)
	} else {
		r.fault(workerKilled, c.Role)
	}
	_, err := r.spawn(c.Role, c.Place)
	return err
}

// ask starts a process and returns what it says.
func (r *run) ask(ctx context.Context, role string) (answer string, err error) {
	c, err := r.spawn(role, 1)
	if err != nil {
		return "", err
	}
	return r.crew.Await(ctx, c)
}
