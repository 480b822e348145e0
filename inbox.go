package oncemill

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/oncemill/oncemill/internal/dbcheck"
	"github.com/oncemill/oncemill/internal/durable"
	"github.com/oncemill/oncemill/internal/grants"
	"github.com/oncemill/oncemill/schema"
)

// An Inbox claims idempotency keys in one Postgres schema. Set the fields, then
// use it from any number of goroutines; do not copy or change it afterwards.
type Inbox struct {
	// DB is the database that holds both the claims and the handlers' own
	// tables. Required. Drivers: lib/pq, or pgx through its stdlib package.
	//
	// Every message being handled holds one connection. Set the pool's limits:
	// DB.SetMaxOpenConns to a few times the database's cores, which also bounds
	// how many handlers run at a time, and DB.SetMaxIdleConns to the same number.
	// By default database/sql keeps only two idle connections, and with more
	// messages than that in flight it opens and closes one for nearly each.
	//
	// A handler that uses the DB beside its transaction needs a second connection
	// while it holds the first. Enough of those wait for each other for ever:
	// then the limit must be more than twice the number of messages in flight.
	DB *sql.DB

	// Schema is the Postgres schema of Oncemill's tables. "" means "oncemill".
	Schema string

	// Retention is how long Run keeps the claims of handled messages. It should
	// be longer than the broker can deliver a message again; an older message
	// without a claim is refused with ErrTooOld. 0 means 7 days, and 10 minutes
	// is the least.
	Retention time.Duration

	// Batch is the largest number of messages that Once handles in one transaction, where
	// so many wait at the same time: group commit. One statement claims all of their keys,
	// one writes what they publish, and one disk flush commits them. Nothing waits for a
	// batch to fill: what arrives while one is under way is in the next. 128 is a good
	// number, with subscribers that hand out twice as many messages at a time. 0 or 1:
	// each its own. Read "Batches" in the package's comment first.
	Batch int

	// BatchTime is for how long a batch goes on with further messages; those that it has
	// not come to are the first of the next. A message can wait for about twice as long,
	// and the rows that a handler has changed stay locked for as long. 0 means half a
	// second.
	BatchTime time.Duration

	// SendAtOnce has each statement of a batch sent when its handler runs it, and not
	// together with what others write.
	SendAtOnce bool

	// LockWait is how long a delivery waits for another delivery of the same key
	// to end before it gives up with ErrInFlight. 0 means 2 seconds.
	LockWait time.Duration

	// IdleTimeout is how long a transaction may go without a statement before
	// Postgres ends it, so that a frozen process does not hold its keys for
	// ever. It has to be longer than the slowest thing that a handler does
	// between two statements: one that takes longer fails with ErrIdle. Postgres
	// does not count the time in which it waits for the client to take a result,
	// so a process that freezes while it reads a result larger than the buffers
	// in between holds its key until the connection breaks. 0 means 1 minute.
	IdleTimeout time.Duration

	// Lease is how long a claim of an effect outside of Postgres may stay unsettled
	// before it is in doubt: see Consumer.Claim. It has to be longer than the effect
	// takes. 0 means 1 minute.
	Lease time.Duration

	// ClaimBatch is how many claims of effects outside of Postgres, and settlements that
	// write nothing besides, may share a transaction when they come at the same time: one
	// disk flush for all. It changes nothing else. Claims with a ClaimOptions.Origin, such
	// as those of middleware.Guard, and with anything to be written when they are settled,
	// have a transaction each. 0 or 1: each its own. 64 is a good number for a server. The
	// DB's connections must be those of PlanByIndex.
	ClaimBatch int

	// EventRetention is how long Run keeps the events of guarded claims. 0 means 90
	// days.
	EventRetention time.Duration

	// DrainTimeout is how long a function that has begun may go on after its
	// context was cancelled, as Watermill's router does with all messages when
	// it closes. 0 means 20 seconds, which is less than the 30 seconds that the
	// router waits by default.
	DrainTimeout time.Duration

	// Observer is told what happens to each message. Optional.
	Observer *Observer

	// Logger gets what Run and Check have to say. nil means slog.Default().
	Logger *slog.Logger

	start     sync.Once
	sql       statements
	flights   flights
	groups    groups
	lane      lane
	consumers sync.Map // name → *Consumer
}

// Observer has functions that an Inbox calls, for metrics and traces. Each may
// be nil. They are called in the goroutine that handles the message, and should
// be quick.
type Observer struct {
	// Committed is called when a handler's transaction has committed, and when a claim
	// has been settled as happened. took is the time since Once or Claim was called.
	Committed func(ctx context.Context, consumer, key string, took time.Duration)

	// Duplicate is called for a message that was handled before.
	Duplicate func(ctx context.Context, consumer, key string)

	// InDoubt is called when the effect of a guarded claim comes to be in doubt, and
	// Resolved when a Resolver has found out what became of it.
	InDoubt  func(ctx context.Context, consumer, key, reason string)
	Resolved func(ctx context.Context, consumer, key string, verdict Verdict)

	// Batch is called after each transaction with several messages: how many of them were
	// committed, how many were in it, and how long it took. Those that were not, and are
	// no duplicates, are in another one soon. It is called in a goroutine of the Inbox, for one batch at a time.
	Batch func(committed, messages int, took time.Duration)

	// Failed is called with whatever error Once, Claim or a method of a Claim is about
	// to return.
	Failed func(ctx context.Context, err *Error)

	// Purged is called after Run or Purge has deleted a batch of a consumer's claims.
	Purged func(ctx context.Context, consumer string, claims int64)
}

// A Consumer is the scope of claims: the same key claimed under two consumers
// is two claims. Get one from Inbox.Consumer.
type Consumer struct {
	in   *Inbox
	name string
}

// Name returns what the consumer's claims are filed under.
func (c *Consumer) Name() string { return c.name }

// Inbox returns the Inbox that holds the consumer's claims.
func (c *Consumer) Inbox() *Inbox { return c.in }

// Consumer returns the handle of a consumer, always the same one for a name.
// The name is part of every claim: under another name, messages that were
// handled before run again.
//
// It panics if the name is empty, longer than 512 bytes or not valid UTF-8, and
// if the Inbox is not set up correctly.
func (in *Inbox) Consumer(name string) *Consumer {
	in.start.Do(in.setUp)
	if c, ok := in.consumers.Load(name); ok {
		return c.(*Consumer)
	}
	if name == "" || len(name) > maxKey || !utf8.ValidString(name) || containsNUL(name) {
		panic(fmt.Sprintf("oncemill: consumer name %q: must be 1 to %d bytes of UTF-8 without NUL", name, maxKey))
	}
	c, _ := in.consumers.LoadOrStore(name, &Consumer{in: in, name: name})
	return c.(*Consumer)
}

func containsNUL(s string) bool {
	for i := range len(s) {
		if s[i] == 0 {
			return true
		}
	}
	return false
}

// setUp fills in defaults, once. What it finds wrong is a programmer's mistake.
func (in *Inbox) setUp() {
	if err := in.validate(); err != nil {
		panic(err.Error())
	}
	in.Retention = orDefault(in.Retention, 7*24*time.Hour)
	in.LockWait = orDefault(in.LockWait, 2*time.Second)
	in.IdleTimeout = orDefault(in.IdleTimeout, time.Minute)
	in.DrainTimeout = orDefault(in.DrainTimeout, 20*time.Second)
	in.BatchTime = orDefault(in.BatchTime, defaultBatchTime)
	in.Lease = orDefault(in.Lease, time.Minute)
	in.EventRetention = orDefault(in.EventRetention, 90*24*time.Hour)
	if in.Observer == nil {
		in.Observer = new(Observer)
	}
	if in.Logger == nil {
		in.Logger = slog.Default()
	}
	in.sql.init(in.DB, schema.Quote(in.Schema))
}

// mostSetting is what a setting of Postgres holds that is counted in
// milliseconds.
const mostClaimBatch = 1000

const mostSetting = math.MaxInt32 * time.Millisecond

func (in *Inbox) validate() error {
	if in.DB == nil {
		return fmt.Errorf("oncemill: Inbox.DB is nil: set it to the *sql.DB of your Postgres")
	}
	if in.Batch < 0 || in.Batch > mostBatch {
		return fmt.Errorf("oncemill: Inbox.Batch is %d: must be from 0 to %d", in.Batch, mostBatch)
	}
	if in.ClaimBatch < 0 || in.ClaimBatch > mostClaimBatch {
		return fmt.Errorf("oncemill: Inbox.ClaimBatch is %d: must be from 0 to %d", in.ClaimBatch, mostClaimBatch)
	}
	for _, field := range []struct {
		name  string
		value time.Duration
		least time.Duration
		most  time.Duration // 0: no limit
	}{
		{"Retention", in.Retention, LeastRetention, 0},
		{"LockWait", in.LockWait, time.Millisecond, mostSetting},
		{"IdleTimeout", in.IdleTimeout, time.Millisecond, mostSetting},
		{"DrainTimeout", in.DrainTimeout, time.Millisecond, 0},
		{"BatchTime", in.BatchTime, time.Millisecond, 0},
		{"Lease", in.Lease, LeastLease, MostLease},
		{"EventRetention", in.EventRetention, LeastRetention, 0},
	} {
		if field.value != 0 && field.value < field.least {
			return fmt.Errorf("oncemill: Inbox.%s is %v: must be at least %v, or 0 for the default", field.name, field.value, field.least)
		}
		if field.most > 0 && field.value > field.most {
			return fmt.Errorf("oncemill: Inbox.%s is %v: must be at most %v", field.name, field.value, field.most)
		}
	}
	return nil
}

func orDefault(value, otherwise time.Duration) time.Duration {
	if value == 0 {
		return otherwise
	}
	return value
}

// EffectTime returns how much of a lease an effect may use up: all but a tenth, and but
// for 5 seconds at most. 0 means the Inbox's Lease. It fails if the lease is too short
// or too long.
func (in *Inbox) EffectTime(lease time.Duration) (time.Duration, error) {
	if err := in.validate(); err != nil {
		return 0, err
	}
	in.start.Do(in.setUp)
	lease = orDefault(lease, in.Lease)
	if lease < LeastLease || lease > MostLease {
		return 0, fmt.Errorf("oncemill: a lease of %v: must be from %v to %v", lease, LeastLease, MostLease)
	}
	return lease - leaseMargin(lease), nil
}

// rightsToClaim are what Once and Claim need for every message, whatever else they do.
var rightsToClaim = grants.On("claims", "SELECT, INSERT").And("watermarks", "SELECT")

// Check reports whether the Inbox can work: its fields are valid, the database
// answers, takes writes, its schema has a version that this build knows, and the
// role may do what every claim needs. If what the database commits can be lost, as with
// synchronous_commit = off or when an asynchronous standby is promoted, it logs a warning
// for each such setting, once in a process: what can be lost, and what helps. Call it when the program starts, so that it
// fails there and not on the first message. A program that claims nothing, such as
// one that lists what is in doubt, can do without, and with fewer rights.
func (in *Inbox) Check(ctx context.Context) error {
	if err := in.validate(); err != nil {
		return err
	}
	warnings, err := dbcheck.Survey(ctx, in.DB, in.Schema)
	if err != nil {
		return markUnavailable(err)
	}
	in.start.Do(in.setUp)
	durable.Tell(ctx, in.Logger, warnings)
	if err := rightsToClaim.Check(ctx, in.DB, in.Schema, "claim keys"); err != nil {
		return fmt.Errorf("oncemill: %w", markUnavailable(err))
	}
	return in.checkPlans(ctx)
}
