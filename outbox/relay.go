package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/oncemill/oncemill/internal/dbcheck"
	"github.com/oncemill/oncemill/internal/durable"
	"github.com/oncemill/oncemill/internal/grants"
	"github.com/oncemill/oncemill/internal/pgurl"
	"github.com/oncemill/oncemill/schema"
)

// batchBytes and orderedBytes are about how many bytes of payloads, ordering keys and
// metadata a relay holds in memory at a time, in all of its batches without ordering keys
// and in those with. A single row may be larger.
const (
	batchBytes   = 16 << 20
	orderedBytes = 8 << 20
)

const (
	// minAway and maxAway bound the pause between rounds while the database or
	// the broker is away.
	minAway = 100 * time.Millisecond
	maxAway = 5 * time.Second

	// connectTimeout bounds the wait for a connection.
	connectTimeout = 10 * time.Second

	// settleTimeout bounds the writing down of what became of a batch that
	// DrainTimeout has cut off.
	settleTimeout = 3 * time.Second
)

// A Relay moves rows from the outbox table to a Sink. Any number of relays, in
// any number of processes, may work on one table: each row is published by one
// of them, and a second time only if a relay dies, or loses the database, between
// the broker's acknowledgement and its own commit.
//
// Rows with ordering keys and rows without are worked on side by side. With much to do
// each has two transactions open: while one batch is published, on a second connection the
// one before it is deleted and then the next one fetched.
//
// Set the fields, then call Run. Do not copy a Relay after first use.
type Relay struct {
	// DB is the database with the outbox table. Required. A running Relay takes
	// two connections, and four while there is much to do, if the pool has them. One is
	// enough, but where COMMITs wait for a synchronous standby: then it takes another one
	// for each of these for a moment, to learn that the standby has the rows before they are
	// published, and the least is two.
	DB *sql.DB

	// Sink is where rows go. Required.
	Sink Sink

	// Schema is the Postgres schema that holds the table. "" means "oncemill".
	Schema string

	// ListenURL is a connection string, as lib/pq takes it, to the same database
	// as DB. The Relay opens one connection with it to hear Publishers' NOTIFYs.
	// It must lead to Postgres itself: PgBouncer in transaction mode passes no
	// notifications. "" means that the Relay only polls.
	ListenURL string

	// Batch is the largest number of rows published in one transaction. The Relay
	// begins with at most 500 and doubles that while batches are full and the Sink
	// takes less than 125 milliseconds for them; it halves it where the Sink takes
	// more than 250 (or an eighth of PublishTimeout) or is unavailable. All batches
	// under way together hold no more than about 24 MiB, a third of it rows with
	// ordering keys. 0 means 2,000.
	Batch int

	// PollInterval is how long the Relay waits before it looks for rows when
	// nothing wakes it. 0 means 1 second.
	PollInterval time.Duration

	// PublishTimeout is how long the Sink may take for a batch. The rows of the
	// batch are locked for as long. A batch that is fetched while the one before is
	// published waits for a quarter of it at most, and is given back then; what it
	// waits is taken from its own time. 0 means 10 seconds.
	//
	// Postgres ends the transaction of a Relay that was silent for twice that
	// and a second, so that a frozen process does not keep its rows for ever.
	PublishTimeout time.Duration

	// MinBackoff and MaxBackoff bound the time that a row waits after it failed
	// to be published. The time doubles with every attempt. 0 means 1 second and
	// 1 minute.
	MinBackoff, MaxBackoff time.Duration

	// MaxAttempts is the number of failed attempts after which a row is parked.
	// Those that failed because the broker was unavailable do not count. 0 means
	// that a row is tried again for ever, unless the Sink refuses it.
	MaxAttempts int

	// DrainTimeout is how long the Sink may go on with a batch that was begun
	// when Run's context ends. 0 means 15 seconds.
	DrainTimeout time.Duration

	// Keep is how long rows are kept once they are published, in the table published, for
	// Admin.Replay. 0 means that they are deleted at once. All relays of a table should
	// have the same. It needs schema version 6.
	Keep time.Duration

	// Observer hears of every batch. Optional.
	Observer *Observer

	// Logger hears when the database or the broker goes away and comes back, of
	// settings with which what was acknowledged can be lost, and of rows that were deferred or parked. nil means slog.Default().
	Logger *slog.Logger

	observing sync.Mutex

	mu   sync.Mutex
	last map[*loop]error // how the last round of each loop went, errNoRound if there was none
	away map[string]*outage
}

// An Observer has functions that a Relay calls, for metrics and traces. Each may
// be nil. They should be quick.
type Observer struct {
	// Batch is called for every batch that was not empty, after its transaction
	// has committed: one after another.
	Batch func(BatchResult)
}

// A BatchResult says what became of the rows of one batch.
type BatchResult struct {
	Published   int // acknowledged by the broker and deleted
	Deferred    int // failed, to be tried again later
	Parked      int // refused, or failed too often
	Unavailable int // left as they were, because the broker was unavailable
	Waiting     int // left as they were, behind another row with their ordering key

	// Oldest is when the oldest of the rows was written.
	Oldest time.Time

	// Took is the time from the begin of the transaction to its commit. Those of two
	// batches may overlap.
	Took time.Duration
}

var (
	errNoRound = errors.New("outbox: relay has not finished a round yet")

	// errCut is why a batch failed that was not finished within DrainTimeout.
	errCut = errors.New("outbox: relay was stopped but its batch did not end within DrainTimeout: the rest of its rows stay in the outbox and will be published later, under the same dedup ids")
)

// Ready returns nil if the Relay's last round of work went well, an empty one
// too, and otherwise an error that says what is away. It is meant for readiness
// probes.
func (r *Relay) Ready() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	rounds := false
	for _, err := range r.last {
		if err != nil && err != errNoRound {
			return err
		}
		rounds = rounds || err == nil
	}
	if !rounds {
		return errNoRound
	}
	return nil
}

// Wake makes Run look for rows at once instead of waiting for the next poll. It
// never blocks, and may be called before Run.
func (r *Relay) Wake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for l := range r.last {
		select {
		case l.wake <- struct{}{}:
		default: // a wake-up is already waiting
		}
	}
}

// Check returns nil if the Relay can start: its fields make sense, the database
// can be written to, holds a schema that this build runs on and gives the
// rights that a relay needs, with those to keep rows if it has to, and the pool has as many
// connections as it needs. Its errors name
// what is wrong and the remedy, and wrap ErrUnreachable, ErrReadOnly or ErrSchema where
// those fit. The rights to move scheduled rows are none of them: see the package's
// comment.
//
// If what the database commits can be lost, as with synchronous_commit = off or when an
// asynchronous standby is promoted, it logs a warning for each such setting, once in a
// process: what can be lost, and what helps.
func (r *Relay) Check(ctx context.Context) error {
	if err := r.validate(); err != nil {
		return err
	}
	warnings, err := dbcheck.Survey(ctx, r.DB, r.Schema)
	if err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	durable.Tell(ctx, orDefault(r.Logger), warnings)
	if err := r.checkPool(ctx); err != nil {
		return err
	}
	if err := r.checkRights(ctx); err != nil || r.Keep == 0 {
		return err
	}
	return r.checkKeep(ctx)
}

// validate looks at the fields alone.
func (r *Relay) validate() error {
	switch {
	case r.DB == nil:
		return errors.New("outbox: Relay.DB is nil: set it to the *sql.DB of the database that holds the outbox")
	case r.Sink == nil:
		return errors.New("outbox: Relay.Sink is nil: set it to where messages go")
	case r.Batch < 0:
		return fmt.Errorf("outbox: Relay.Batch is %d: must be at least 1, or 0 for the default", r.Batch)
	case r.MaxAttempts < 0:
		return fmt.Errorf("outbox: Relay.MaxAttempts is %d: must be at least 1, or 0 for no limit", r.MaxAttempts)
	}
	for _, field := range []struct {
		name  string
		value time.Duration
	}{
		{"PollInterval", r.PollInterval},
		{"PublishTimeout", r.PublishTimeout},
		{"MinBackoff", r.MinBackoff},
		{"MaxBackoff", r.MaxBackoff},
		{"DrainTimeout", r.DrainTimeout},
		{"Keep", r.Keep},
	} {
		if field.value < 0 {
			return fmt.Errorf("outbox: Relay.%s is %v: must not be negative; 0 means the default", field.name, field.value)
		}
	}
	if r.minBackoff() > r.maxBackoff() {
		return fmt.Errorf("outbox: Relay.MinBackoff is %v: must not exceed MaxBackoff, %v", r.minBackoff(), r.maxBackoff())
	}
	if sink, ok := r.Sink.(validator); ok {
		if err := sink.Validate(); err != nil {
			return err
		}
	}
	if r.ListenURL != "" {
		if _, err := pgurl.Connector(r.ListenURL); err != nil {
			return fmt.Errorf("outbox: Relay.ListenURL is %w", err)
		}
	}
	return nil
}

// checkRights finds out whether the role may do what a round does. What it needs besides,
// for scheduled rows, it may do without: see the scheduler.
func (r *Relay) checkRights(ctx context.Context) error {
	if err := grants.On("outbox", "SELECT, UPDATE, DELETE").Check(ctx, r.DB, r.Schema, "relay"); err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	return nil
}

func (r *Relay) table() string                 { return schema.Quote(r.Schema) + ".outbox" }
func (r *Relay) batch() int                    { return or(r.Batch, 2000) }
func (r *Relay) pollInterval() time.Duration   { return or(r.PollInterval, time.Second) }
func (r *Relay) publishTimeout() time.Duration { return or(r.PublishTimeout, 10*time.Second) }
func (r *Relay) minBackoff() time.Duration     { return or(r.MinBackoff, min(time.Second, r.maxBackoff())) }
func (r *Relay) maxBackoff() time.Duration     { return or(r.MaxBackoff, time.Minute) }
func (r *Relay) drainTimeout() time.Duration   { return or(r.DrainTimeout, 15*time.Second) }

// idleTimeout is after how long without a statement Postgres ends a round's
// transaction. The longest such time of a healthy relay is PublishTimeout.
func (r *Relay) idleTimeout() time.Duration { return 2*r.publishTimeout() + time.Second }

func or[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}
