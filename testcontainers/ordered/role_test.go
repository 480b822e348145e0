package ordered_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/oncemill/oncemill/outbox"

	"github.com/oncemill/oncemill/testcontainers/internal/actor"
)

// roleVariable makes the test binary play the role that it holds, as JSON.
const roleVariable = "ONCEMILL_TEST_ROLE"

// A role is what a process does. It says on its standard output, a line each:
//
//	running          it has begun to work
//	finished         a producer has committed all that it has to
//	late             a producer has committed a transaction that was open for long
//	undone           a producer has rolled a transaction back
//	batch N          a relay has handed N messages to the broker
//	away             the sink has taken the broker away from a relay
//	missing          the broker was away by itself
//	dying UUID      it does to itself what its Fault says
//	freezing UUID    the same, with this message about to be published
//	stale N          N messages were published after that
//	UUID TIME ...    anything that happens to a message
type role struct {
	Kind     string // "producer" or "relay"
	Name     string
	Postgres string // URL
	NATS     string // URL
	Topic    string
	Seed     uint64

	// Of a producer.
	Load     load
	Producer int // which one it is

	// Of a relay.
	Calm           bool // messages do not fail
	Steady         bool // the broker is neither slow nor away by itself
	Bare           bool // messages go without dedup ids, and no acks are lost
	Fault          fault
	After          int // how many batches it spares itself that
	PollInterval   time.Duration
	PublishTimeout time.Duration
	MinBackoff     time.Duration
}

// A load is what producers write together.
type load struct {
	Producers int
	Writers   int // in each producer
	Messages  int // with keys
	Unkeyed   int // and others
	Keys      int
	Pause     time.Duration // the longest one between two transactions of a writer
	Simple    bool          // one message in each transaction, which commits at once
	Even      bool          // no key is hot
}

type fault string

const (
	dieBeforePublishing    fault = "die before a batch is published"
	dieAfterPublishing     fault = "die when a batch is published, before the commit"
	freezeBeforePublishing fault = "freeze before a batch is published"
	freezeWithinAPublish   fault = "freeze when half of a batch is published"
	killed                 fault = "be killed by the test"
	stopped                fault = "be stopped by the test"
)

// A performer is a process that plays a role.
type performer struct {
	actor.Player
	role
}

func play(text string) error {
	p := &performer{}
	if err := json.Unmarshal([]byte(text), &p.role); err != nil {
		return err
	}
	db, err := sql.Open("postgres", p.Postgres)
	if err != nil {
		return err
	}
	defer db.Close()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if p.Kind == "producer" {
		db.SetMaxIdleConns(p.Load.Writers)
		return (&producer{performer: p, db: db}).produce(ctx)
	}
	db.SetMaxIdleConns(4)
	return p.relay(ctx, db)
}

// relay is the role of a relay, as a user would set it up.
func (p *performer) relay(ctx context.Context, db *sql.DB) error {
	nc, err := nats.Connect(p.NATS, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond), nats.RetryOnFailedConnect(true))
	if err != nil {
		return err
	}
	defer nc.Close()
	relay := &outbox.Relay{
		DB:             db,
		Sink:           newSink(p, nc),
		Batch:          100, // small, so that there are many
		PollInterval:   p.PollInterval,
		PublishTimeout: p.PublishTimeout,
		MinBackoff:     p.MinBackoff,
		MaxBackoff:     2 * p.MinBackoff,
		Logger:         slog.New(quiet{slog.NewTextHandler(os.Stderr, nil)}),
	}
	p.Say("running")
	for {
		// Postgres may be away just now: then Run ends at once, and whoever runs a
		// relay starts it again.
		err := relay.Run(ctx)
		if ctx.Err() != nil || err == nil {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// A quiet log leaves out what happens to single messages, which the test has brought about
// and history tells.
type quiet struct{ slog.Handler }

func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	if strings.Contains(r.Message, "parked a message") || strings.Contains(r.Message, "could not be published") {
		return nil
	}
	return q.Handler.Handle(ctx, r)
}

// tell says what happens to a message.
func (p *performer) tell(uuid, what string, args ...any) {
	p.Say("%s %s %s "+what, append([]any{uuid, time.Now().Format("04:05.000000"), p.Name}, args...)...)
}
