package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

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
	js     natsjs.JetStream
	screen *screen

	crew     []*child // all that were started
	events   chan event
	over     chan struct{}
	faults   map[string]int // by kind
	killed   map[string]int // by role
	took     time.Duration
	verdict  verdict
	deadline time.Time // see patience
}

// conduct sets everything up, has the work done, and has it audited.
func (r *run) conduct(ctx context.Context) (err error) {
	r.events, r.over = make(chan event), make(chan struct{})
	r.faults, r.killed = make(map[string]int), make(map[string]int)
	defer r.killAll()
	r.screen = newScreen(os.Stdout)
	r.screen.title("%s orders %s", thousands(r.setting.Messages), r.name)
	defer r.screen.end()
	closeConn, err := r.startNATS(ctx)
	if err != nil {
		return err
	}
	defer closeConn()
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

func (r *run) startNATS(ctx context.Context) (closeConn func(), err error) {
	if r.setting.NATS, err = r.ask(ctx, "nats"); err != nil {
		return nil, err
	}
	conn, err := nats.Connect(r.setting.NATS)
	if err != nil {
		return nil, err
	}
	if r.js, err = natsjs.New(conn); err == nil {
		err = createStreams(ctx, r.js)
	}
	if err != nil {
		conn.Close()
	}
	return conn.Close, err
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
	return err
}

// work starts everybody and waits until all orders are through.
func (r *run) work(ctx context.Context) error {
	workers := []string{"billing", "shipping", "relay"}
	if !r.setting.Oncemill {
		workers = workers[:2] // there is no outbox to relay
	}
	for _, role := range append(workers, "producer") {
		if _, err := r.spawn(role); err != nil {
			return err
		}
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
func (r *run) spawn(role string) (*child, error) {
	s := r.setting
	s.Faults = role == "billing" || role == "shipping"
	s.Doomed = (s.Faults || role == "relay") && r.killed[role] < kills
	c, err := spawn(r.dir, role, s, r.events, r.over)
	if err != nil {
		return nil, err
	}
	c.mayEnd = role == "producer" || role == "audit"
	r.crew = append(r.crew, c)
	return c, nil
}

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
	case e.line == saysLostAck, e.line == saysError, e.line == saysPanic:
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
	_, err := r.spawn(c.role)
	return err
}

// ask starts a process and returns what it says.
func (r *run) ask(ctx context.Context, role string) (answer string, err error) {
	c, err := r.spawn(role)
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
		if c.role != "nats" {
			c.stop()
		}
	}
	limit := time.Now().Add(stopLimit)
	return r.attend(ctx, func() (bool, error) {
		for _, c := range r.crew {
			if c.role != "nats" && !c.hasEnded() {
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
		if c.role == "nats" {
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
