package main

import (
	"context"
	"database/sql"
	"flag"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/testcontainers/natsserver"
	"github.com/oncemill/oncemill/testcontainers/postgres"
)

// stages is into how many parts a run is divided. In each one the billing worker
// is killed once; a part begins when that of before is well under way.
const stages = 6

const ordersStream = "ORDERS"

// conduct runs the demo: with Oncemill, without, and the report.
func conduct(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("quickstart", flag.ContinueOnError)
	messages := flags.Int("messages", 10_000, "how many orders to send, 500 or more")
	broker := flags.String("broker", "nats", "the broker: nats")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *messages < 500 {
		return fmt.Errorf("-messages is %d: must be 500 or more, for enough to go wrong", *messages)
	}
	if *broker != "nats" {
		return fmt.Errorf("-broker is %q: only nats is there", *broker)
	}
	dir, err := os.MkdirTemp("", "oncemill-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	fmt.Println("starting a Postgres server ...")
	server, err := postgres.Start(ctx, postgres.Options{})
	if err != nil {
		return err
	}
	defer server.Close()

	var runs [2]*run
	for i, with := range []bool{true, false} {
		r := &run{dir: dir, server: server, messages: *messages, with: with, faults: make(map[string]int)}
		if err := r.conduct(ctx); err != nil {
			if ctx.Err() == nil {
				fmt.Fprint(os.Stderr, tail(dir))
			}
			return fmt.Errorf("the run %s: %w", r.name(), err)
		}
		runs[i] = r
	}
	return report(os.Stdout, runs[0], runs[1])
}

// A run is the work of the demo, with Oncemill or without.
type run struct {
	dir      string
	server   *postgres.Server
	messages int
	with     bool

	db       *sql.DB
	js       natsjs.JetStream
	setting  setting
	billing  *child
	relay    *child
	shipping *child
	progress progress
	shown    time.Time // when the progress was last printed
	took     time.Duration
	verdict  verdict

	mu     sync.Mutex
	faults map[string]int // by kind
}

func (r *run) name() string {
	if r.with {
		return "with Oncemill"
	}
	return "without Oncemill"
}

// conduct sets everything up, does the work, and has it audited.
func (r *run) conduct(ctx context.Context) (err error) {
	fmt.Printf("\n== %d orders %s\n", r.messages, r.name())
	broker, err := natsserver.Embed()
	if err != nil {
		return err
	}
	defer broker.Close()
	conn, err := nats.Connect(broker.URL())
	if err != nil {
		return err
	}
	defer conn.Close()
	if r.js, err = natsjs.New(conn); err != nil {
		return err
	}
	for name, subject := range map[string]string{ordersStream: "orders", "INVOICES": "invoices", "DEAD": "dead-letter"} {
		if _, err := r.js.CreateStream(ctx, natsjs.StreamConfig{Name: name, Subjects: []string{subject}}); err != nil {
			return err
		}
	}
	r.setting = setting{Oncemill: r.with, NATS: broker.URL()}
	if err := r.createDatabase(ctx); err != nil {
		return err
	}
	defer r.db.Close()
	defer r.endAll()

	start := time.Now()
	if err := r.work(ctx); err != nil {
		return err
	}
	r.took = time.Since(start)
	return r.audit(ctx)
}

func (r *run) createDatabase(ctx context.Context) error {
	name := "without"
	if r.with {
		name = "with"
	}
	admin, err := sql.Open("postgres", r.server.URL("postgres"))
	if err != nil {
		return err
	}
	defer admin.Close()
	if _, err := admin.ExecContext(ctx, `CREATE DATABASE "`+name+`"`); err != nil {
		return err
	}
	r.setting.Postgres = r.server.URL(name)
	if r.db, err = sql.Open("postgres", r.setting.Postgres); err != nil {
		return err
	}
	if r.with {
		if err := oncemill.Migrate(ctx, r.db, ""); err != nil {
			return err
		}
	}
	// No constraints: what happens twice has to be seen.
	_, err = r.db.ExecContext(ctx, `CREATE TABLE bills (order_number text); CREATE TABLE shipments (order_number text)`)
	return err
}

// work sends the orders, part by part, and kills the workers meanwhile.
func (r *run) work(ctx context.Context) (err error) {
	if r.shipping, err = r.spawn("shipping", r.setting); err != nil {
		return err
	}
	if r.billing, err = r.spawn("billing", r.setting); err != nil {
		return err
	}
	if err := r.startRelay(); err != nil {
		return err
	}
	for stage := range stages {
		from, to := r.messages*stage/stages+1, r.messages*(stage+1)/stages
		s := r.setting
		s.From, s.To = from, to
		producer, err := r.spawn("producer", s)
		if err != nil {
			return err
		}
		if err := r.until(ctx, func(p progress) bool { return p.Bills >= (from+to)/2 }); err != nil {
			return err
		}
		r.billing.kill()
		r.fault("worker killed")
		if r.billing, err = r.spawn("billing", r.setting); err != nil {
			return err
		}
		if <-producer.ended; producer.err != nil {
			return fmt.Errorf("producer: %w", producer.err)
		}
	}
	return r.until(ctx, func(p progress) bool { return p.Idle && p.Orders == r.messages })
}

// spawn starts a worker, whose words are faults.
func (r *run) spawn(role string, s setting) (*child, error) {
	return spawn(r.dir, role, s, r.fault)
}

// startRelay starts a relay, and another one whenever it has killed itself,
// five times in all. The last one stays.
func (r *run) startRelay() error {
	if !r.with {
		return nil
	}
	s := r.setting
	s.DieAfterPublish = r.count(saidToKill) < 5
	relay, err := r.spawn("relay", s)
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.relay = relay
	r.mu.Unlock()
	if s.DieAfterPublish {
		go func() {
			<-relay.ended
			if !r.ending() {
				_ = r.startRelay() // without one the run does not come to its end, and says so
			}
		}()
	}
	return nil
}

// fault notes that something was made to go wrong, and says so.
func (r *run) fault(kind string) {
	r.mu.Lock()
	r.faults[kind]++
	n := r.faults[kind]
	r.mu.Unlock()
	if n <= 5 || n%50 == 0 {
		fmt.Printf("   fault: %s (%d)\n", kind, n)
	}
}

func (r *run) count(kind string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.faults[kind]
}

const ended = "ended"

func (r *run) ending() bool { return r.count(ended) > 0 }

func (r *run) current() []*child {
	r.mu.Lock()
	defer r.mu.Unlock()
	var children []*child
	for _, c := range []*child{r.billing, r.relay, r.shipping} {
		if c != nil {
			children = append(children, c)
		}
	}
	return children
}

// endAll leaves no process behind, whatever has happened.
func (r *run) endAll() {
	r.mu.Lock()
	r.faults[ended]++
	r.mu.Unlock()
	for _, c := range r.current() {
		c.kill()
	}
}
