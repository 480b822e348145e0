package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/testcontainers/postgres"
)

const (
	// lookEvery is how often Postgres and the broker are asked how far they are.
	lookEvery = 100 * time.Millisecond

	// patience is for how long nothing may change until a run is given up.
	patience = time.Minute

	// stopLimit is how long the processes may take to end when asked to.
	stopLimit = 15 * time.Second
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
	screen *screen

	crew     []*child // all that were started
	events   chan event
	over     chan struct{}
	faults   map[string]int // by kind
	doomed   map[string]int // by role: that are to be killed, or were
	killed   map[string]int // by role
	took     time.Duration
	verdict  verdict
	deadline time.Time // see patience
}

// conduct sets everything up, has the work done, and has it audited.
func (r *run) conduct(ctx context.Context) (err error) {
	r.events, r.over = make(chan event), make(chan struct{})
	r.faults, r.doomed, r.killed = make(map[string]int), make(map[string]int), make(map[string]int)
	defer r.killAll()
	r.screen = newScreen(os.Stdout)
	r.screen.title("%s orders %s", thousands(r.setting.Messages), r.name)
	defer r.screen.end()
	if err := r.startBroker(ctx); err != nil {
		return err
	}
	defer r.broker.close()
	if err := r.createDatabase(ctx); err != nil {
		return err
	}
	defer r.db.Close()

	r.screen.restart()
	begun := time.Now()
	if err := r.work(ctx); err != nil {
		return err
	}
	r.took = time.Since(begun)
	if err := r.stopWorkers(ctx); err != nil {
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

func (r *run) createDatabase(ctx context.Context) error {
	admin, err := sql.Open("postgres", r.server.URL("postgres"))
	if err != nil {
		return err
	}
	defer admin.Close()
	if _, err := admin.ExecContext(ctx, `CREATE DATABASE `+r.database); err != nil {
		return err
	}
	r.setting.Postgres = r.server.URL(r.database)
	if r.db, err = openDB(r.setting); err != nil {
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
	return r.attend(ctx, func() (bool, error) {
		p, err := r.look(ctx)
		if err != nil || p == before {
			return false, err
		}
		before = p
		r.changed()
		r.screen.status(fmt.Sprintf("%v; %s faults", p, thousands(r.troubles())))
		return p.done, nil
	})
}

// spawn starts a process in a role.
func (r *run) spawn(role string, place int) (*child, error) {
	s := r.setting
	s.Place = place
	s.Faults = role == "billing" || role == "shipping"
	if mortal(role) && r.doomed[role] < kills {
		r.doomed[role]++
		// All of the kills take place well before the end of the run.
		s.Lifetime = s.Messages / (kills + 2) / s.brand().workers
		s.CutOff = r.doomed[role]%2 == 1 // every other one
	}
	c, err := spawn(r.dir, role, s, r.events, r.over)
	if err != nil {
		return nil, err
	}
	c.mayEnd = role == "producer" || role == "audit"
	r.crew = append(r.crew, c)
	return c, nil
}

// kills is how often each of the workers and the relay is killed in a run.
const kills = 6

// mortal tells whether some in a role are to be killed.
func mortal(role string) bool { return role == "billing" || role == "shipping" || role == "relay" }

// attend deals with what the children say until done, which it asks now and then.
func (r *run) attend(ctx context.Context, done func() (bool, error)) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	r.changed()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e := <-r.events:
			if err := r.handle(e); err != nil {
				return err
			}
		case now := <-tick.C:
			if ok, err := done(); ok || err != nil {
				return err
			}
			if r.screen.err != nil {
				return r.screen.err
			}
			if now.After(r.deadline) {
				return fmt.Errorf("nothing has changed for %v", patience)
			}
		}
	}
}

func (r *run) changed() { r.deadline = time.Now().Add(patience) }

// handle deals with one thing that a child said, or with its end.
func (r *run) handle(e event) error {
	switch {
	case e.ended:
		return e.from.misbehaved(e.err)
	case e.line == saysKillMe:
		return r.replace(e.from)
	case slices.Contains([]string{saysLostAck, saysLostCommit, saysError, saysPanic}, e.line):
		r.fault(e.line, e.from.role)
	default:
		e.from.answer = e.line
	}
	return nil
}

// replace kills a worker or the relay, and starts another one.
func (r *run) replace(c *child) error {
	c.kill()
	r.killed[c.role]++
	if c.role == "relay" {
		r.fault(relayKilled, c.role)
	} else {
		r.fault(workerKilled, c.role)
	}
	_, err := r.spawn(c.role, c.place)
	return err
}

// ask starts a process and returns what it says.
func (r *run) ask(ctx context.Context, role string) (answer string, err error) {
	c, err := r.spawn(role, 1)
	if err != nil {
		return "", err
	}
	err = r.attend(ctx, func() (bool, error) { return c.answer != "", nil })
	return c.answer, err
}

// stopWorkers ends everybody but the broker as an operator would, and wants them
// to go in peace.
func (r *run) stopWorkers(ctx context.Context) error {
	for _, c := range r.crew {
		if c.role != r.setting.Broker {
			c.stop()
		}
	}
	limit := time.Now().Add(stopLimit)
	return r.attend(ctx, func() (bool, error) {
		for _, c := range r.crew {
			if c.role != r.setting.Broker && !c.hasEnded() {
				if time.Now().After(limit) {
					return false, errors.New(c.role + " does not end")
				}
				return false, nil
			}
		}
		return true, nil
	})
}

// killAll leaves nobody behind, whatever has happened.
func (r *run) killAll() {
	close(r.over)
	for _, c := range r.crew {
		if c.role == r.setting.Broker {
			c.stop() // it has files to remove
			select {
			case <-c.ended:
			case <-time.After(stopLimit):
			}
		}
		c.kill()
		<-c.ended
	}
}
