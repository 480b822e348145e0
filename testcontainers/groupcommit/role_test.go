package groupcommit_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/lib/pq"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"

	"github.com/oncemill/oncemill/testcontainers/internal/actor"
)

// roleVariable makes the test binary play the role that it holds, as JSON.
const roleVariable = "ONCEMILL_TEST_ROLE"

// A role is what a worker does. It says on its standard output, a line each:
//
//	running              it has begun to work
//	acked KEY            a message was acknowledged
//	finished             all that it has to deliver was
//	failpoint KIND LOSS  a connection was broken
//	deadlock KIND        Postgres has ended a statement of that kind for a deadlock
//	largest N            the most effects that a transaction had so far
//	stale                a handler has tried to use a transaction that it no longer has
//	amiss KEY ...        a handler has seen what it may not see
//	dying WHERE          it does to itself what its Fault says
//	freezing WHERE       the same
//	KEY TIME NAME ...    anything that happens to a message
type role struct {
	Name     string
	Postgres string // URL
	Seed     uint64
	Messages int // in all
	Worker   int // 0 or 1: whose deliveries it makes
	// Only are the messages that it delivers, once each; nil: those that are its own.
	Only     []int
	All      bool // it delivers each message, once
	InFlight int

	Batch       int
	BatchTime   time.Duration
	IdleTimeout time.Duration

	Calm       bool // handlers and contexts have no faults, and counters are let alone
	Failpoints bool
	IdleEvery  int   // of so many messages one idles at first; 0: none
	Fault      fault // what it does to itself
	After      int   // how often it spares itself that
}

type fault string

const (
	dieInHandler    fault = "die in a handler"
	dieBeforeCommit fault = "die before COMMIT is sent"
	dieAfterCommit  fault = "die when COMMIT is answered"
	freezeInHandler fault = "freeze in a handler"
	freezeInCommit  fault = "freeze before COMMIT is sent"
)

// The names in which keys are claimed.
const consumer, loners = "groupcommit", "loners"

// A worker is a process that plays a role.
type worker struct {
	actor.Player
	role
	inbox  *oncemill.Inbox
	direct outbox.Publisher // what handlers publish with

	mu      sync.Mutex
	runs    map[int]int // of a message's handler
	stale   *stale
	largest int // transaction so far, in effects
}

func play(text string) error {
	w := &worker{runs: make(map[int]int)}
	if err := json.Unmarshal([]byte(text), &w.role); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	connector, err := pq.NewConnector(w.Postgres)
	if err != nil {
		return err
	}
	// It is open for as long as the process is: what ends sessions is not waited for.
	plain, err := sql.Open("postgres", w.Postgres)
	if err != nil {
		return err
	}
	plain.SetMaxOpenConns(4)
	connector.Dialer(&saboteur{w: w, db: plain, seen: make(map[kind]int)})
	db := sql.OpenDB(connector)
	defer db.Close()
	db.SetMaxOpenConns(24)
	db.SetMaxIdleConns(24)
	w.inbox = &oncemill.Inbox{
		DB: db, Batch: w.Batch, BatchTime: w.BatchTime, IdleTimeout: w.IdleTimeout,
		DrainTimeout: 500 * time.Millisecond, LockWait: time.Second,
	}
	return w.work(ctx)
}

// work runs a router as a user would set it up.
func (w *worker) work(ctx context.Context) error {
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: limit}, nil)
	if err != nil {
		return err
	}
	router.AddMiddleware(w.witness, w.once)
	router.AddHandler(consumer, "orders", newSource(w), "receipts", &outbox.Publisher{}, w.handle)
	go func() {
		<-router.Running()
		w.Say("running")
	}()
	return router.Run(ctx)
}

// once is the middleware Once, for two consumers.
func (w *worker) once(next message.HandlerFunc) message.HandlerFunc {
	most := middleware.Once{Inbox: w.inbox, Consumer: consumer}.Middleware(next)
	others := middleware.Once{Inbox: w.inbox, Consumer: loners}.Middleware(next)
	return func(msg *message.Message) ([]*message.Message, error) {
		if number, err := strconv.Atoi(msg.Metadata.Get("number")); err == nil && loner(number) {
			return others(msg)
		}
		return most(msg)
	}
}

// witness tells what Once makes of a message.
func (w *worker) witness(next message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) (produced []*message.Message, err error) {
		returned := false
		defer func() {
			if !returned {
				w.tell(msg.UUID, "Once panicked")
			}
		}()
		produced, err = next(msg)
		returned = true
		w.tell(msg.UUID, "Once returned %v", err)
		return produced, err
	}
}
