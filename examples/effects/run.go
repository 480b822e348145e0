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
	"github.com/oncemill/oncemill/examples/internal/streams"
	"github.com/oncemill/oncemill/testcontainers/postgres"
)

// workers is how many work at a time.
const workers = 3

// A run sends all orders through. One goroutine has the say over everything in it.
type run struct {
	dir     string // for logs, and the provider's files
	server  *postgres.Server
	setting setting // for the children

	db     *sql.DB
	broker *streams.Broker
	screen *screen.Screen

	crew     *crew.Crew
	dooms    []moment                 // that are still to come, in their order
	settings map[*crew.Child]*setting // of the workers
	lives    int                      // of workers, so far
	kills    map[moment]int
	faults   map[string]int // of the provider's
	took     time.Duration
	flow     streams.Flow // of the orders, at the end
	verdict  verdict
}

// conduct sets everything up, has the work done, and has it checked.
func (r *run) conduct(ctx context.Context) (err error) {
	r.screen = screen.New(os.Stdout)
	r.crew = crew.New(r.dir)
	r.crew.Heard, r.crew.Watch = r.heard, func() error { return r.screen.Err }
	r.settings, r.kills, r.faults = map[*crew.Child]*setting{}, map[moment]int{}, map[string]int{}
	defer r.crew.KillAll(roleNATS)
	defer r.screen.End()
	if err := r.createDatabase(ctx); err != nil {
		return err
	}
	defer r.db.Close()
	if r.setting.NATS, err = r.ask(ctx, roleNATS); err != nil {
		return err
	}
	if r.broker, err = streams.Connect(r.setting.NATS); err != nil {
		return err
	}
	defer r.broker.Close()
	if err := r.broker.Create(ctx, 2*time.Minute, orders, receipts, deadLetters); err != nil {
		return err
	}
	if r.setting.Provider, err = r.ask(ctx, roleProvider); err != nil {
		return err
	}
	if err := r.work(ctx); err != nil {
		return err
	}
	return r.check(ctx)
}

// The table has no unique constraint: what happens twice has to be seen.
const (
	createRecords = `CREATE TABLE records (order_id text, receipt text, amount bigint)`
	insertRecord  = `INSERT INTO records (order_id, receipt, amount) VALUES ($1, $2, $3)`
)

func (r *run) createDatabase(ctx context.Context) (err error) {
	if r.setting.Postgres, err = crew.CreateDatabase(ctx, r.server, "effects"); err != nil {
		return err
	}
	if r.db, err = crew.OpenDB(r.setting.Postgres); err != nil {
		return err
	}
	if err := oncemill.Migrate(ctx, r.db, ""); err != nil {
		return err
	}
	_, err = r.db.ExecContext(ctx, createRecords)
	return err
}

// work has everybody work until all orders are through.
func (r *run) work(ctx context.Context) error {
	r.screen.Title("%s orders", screen.Thousands(r.setting.Messages))
	r.screen.Restart()
	begun := time.Now()
	for n := range plannedKills(r.setting.Messages) {
		moments := r.setting.kind().moments
		r.dooms = append(r.dooms, moments[n%len(moments)])
	}
	for place := range workers {
		if err := r.hire(place + 1); err != nil {
			return err
		}
	}
	for _, role := range []string{roleRelay, roleProducer} {
		child, err := r.crew.Spawn(role, r.setting)
		if err != nil {
			return err
		}
		child.MayEnd = role == roleProducer
	}
	var before progress
	err := r.crew.Attend(ctx, func() (bool, error) {
		p, err := r.look(ctx)
		if err != nil || p == before {
			return false, err
		}
		before = p
		r.crew.Changed()
		r.screen.Status(fmt.Sprintf("%v; %d workers killed, %d faults of the provider's", p, r.killed(), r.troubles()))
		return p.done, nil
	})
	r.took = time.Since(begun)
	return err
}

// plannedKills are a few more than are needed.
func plannedKills(messages int) int { return needed(messages)*6/5 + 1 }

// hire starts a worker. The next doom is its own.
func (r *run) hire(place int) error {
	s := r.setting
	r.lives++
	s.Place, s.Life = place, r.lives
	if len(r.dooms) > 0 {
		s.Moment, r.dooms = r.dooms[0], r.dooms[1:]
		// All of the kills take place well before the end of the run.
		s.Lifetime = s.Messages / 2 / plannedKills(s.Messages)
	}
	child, err := r.crew.Spawn(roleWorker, s)
	r.settings[child] = &s
	return err
}

// heard deals with one thing that a child said.
func (r *run) heard(from *crew.Child, line string) (taken bool, err error) {
	if line == crew.KillMe {
		return true, r.replace(from)
	}
	if place, life, ok := parseKill(line); ok {
		for child, s := range r.settings {
			if s.Place == place && s.Life == life && !child.Killed() {
				return true, r.replace(child)
			}
		}
		return true, nil
	}
	isFault := slices.ContainsFunc(r.setting.kind().faults, func(f fault) bool { return f.says == line })
	if isFault {
		r.faults[line]++
		r.crew.Changed()
	}
	return isFault, nil
}

// replace kills a worker and starts another one.
func (r *run) replace(child *crew.Child) error {
	child.Kill()
	s := r.settings[child]
	r.kills[s.Moment]++
	r.screen.Line(fmt.Sprintf("worker %d killed %s (%d)", s.Place, s.Moment, r.killed()))
	r.crew.Changed()
	return r.hire(s.Place)
}

func (r *run) killed() (n int) {
	for _, times := range r.kills {
		n += times
	}
	return n
}

func (r *run) troubles() (n int) {
	for _, times := range r.faults {
		n += times
	}
	return n
}

// check ends everybody but the servers, and has the checker look. It fails if it finds
// what should not be, which its answer says too.
func (r *run) check(ctx context.Context) (err error) {
	if err := r.crew.StopAll(ctx, roleNATS, roleProvider); err != nil {
		return err
	}
	if r.flow, err = r.broker.Look(ctx, orders, r.setting.kind().consumer); err != nil {
		return err
	}
	answer, err := r.ask(ctx, roleChecker)
	if answer == "" {
		return err
	}
	return json.Unmarshal([]byte(answer), &r.verdict)
}

// ask starts a process and returns what it says.
func (r *run) ask(ctx context.Context, role string) (answer string, err error) {
	child, err := r.crew.Spawn(role, r.setting)
	if err != nil {
		return "", err
	}
	child.MayEnd = role == roleChecker
	return r.crew.Await(ctx, child)
}
