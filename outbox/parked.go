package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/oncemill/oncemill/internal/dbcheck"
	"github.com/oncemill/oncemill/internal/metadata"
	"github.com/oncemill/oncemill/schema"
)

// An Admin shows what is in the tables of the outbox, and has an operator deal with what
// relays have given up. It is what the commands of `oncemill outbox` are made of, and can
// be what a page of your own is made of. It never waits for rows that somebody holds.
type Admin struct {
	// DB is the database with the outbox table. Required.
	DB *sql.DB

	// Schema is the Postgres schema that holds the tables. "" means "oncemill".
	Schema string
}

// A State is why a row is not on its way to the broker.
type State string

const (
	// Parked rows were refused by the broker, or have failed too often. Nothing is done
	// about them until an operator does, and those of their ordering key wait behind them.
	Parked State = "parked"

	// Deferred rows have failed and wait for their next attempt.
	Deferred State = "deferred"

	// Waiting rows have not failed: a relay sends them, or they wait behind another one of
	// their ordering key. No Filter is for them.
	Waiting State = "waiting"

	// Scheduled rows are not due yet. They are in a table of their own, which is there from
	// schema version 6 on.
	Scheduled State = "scheduled"
)

// A Filter says which rows are meant. Its zero value means all parked ones; fields that
// are set must all match.
type Filter struct {
	State State  // "" means Parked
	ID    int64  // 0: any. Ids of scheduled rows are others than those of the outbox
	Topic string // a * in it stands for any characters, also none; "": any
	Key   []byte // the ordering key; nil: any, which an empty one is not
	Error string // a part of the last error's text; not for Scheduled
}

// An Entry is one row as an operator sees it.
type Entry struct {
	// Row is what is stored. Metadata and Payload are read by Drop alone.
	Row

	State State

	// Since is since when the row is parked; for a deferred one, when it is tried again,
	// and for a scheduled one when it is due.
	Since time.Time

	// Error is why the last attempt failed.
	Error string

	// Size is the length of the payload in bytes.
	Size int64

	// Behind is how many rows of the same ordering key come after it. They wait for it.
	Behind int64

	// MetadataText is the metadata as it is stored, a JSON object, which may be one that
	// cannot be read. Only Drop sets it.
	MetadataText string
}

// Check returns nil if the database can be used. Its errors wrap ErrUnreachable,
// ErrReadOnly or ErrSchema where those fit.
func (a *Admin) Check(ctx context.Context) error {
	if a.DB == nil {
		return errors.New("outbox: Admin.DB is nil: set it to the *sql.DB of the database that holds the outbox")
	}
	if err := dbcheck.Check(ctx, a.DB, a.Schema); err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	return nil
}

func (a *Admin) table(name string) string { return schema.Quote(a.Schema) + "." + name }

// in runs fn in a transaction whose planner uses the partial indexes, also where the table
// has been filled just now and has no statistics yet. Should this process freeze in it,
// Postgres ends it.
func (a *Admin) in(ctx context.Context, fn func(tx *sql.Tx) error) error {
	tx, err := a.DB.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return fmt.Errorf("database: begin: %w", err)
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, `
		SET LOCAL idle_in_transaction_session_timeout = '60s';
		SET LOCAL enable_seqscan = off`); err != nil {
		return fmt.Errorf("database: %w", err)
	}
	if err := fn(tx); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("database: commit (it may have succeeded): %w", err)
	}
	return nil
}

// wake tells relays that there is something to do, as a Publisher does.
func (a *Admin) wake(ctx context.Context) error {
	if _, err := a.DB.ExecContext(ctx, `NOTIFY `+schema.Quote(Channel(a.Schema))); err != nil {
		return fmt.Errorf("outbox: wake relays (they will poll): %w", err)
	}
	return nil
}

// check says what is wrong with a Filter.
func (f Filter) check() error {
	switch {
	case f.State != "" && f.State != Parked && f.State != Deferred && f.State != Scheduled:
		return fmt.Errorf("outbox: Filter.State is %q: must be %q, %q or %q", f.State, Parked, Deferred, Scheduled)
	case f.State == Scheduled && f.Error != "":
		return errors.New("outbox: Filter.Error is set for scheduled rows: they have not failed, leave it empty")
	case !metadata.IsText(f.Topic):
		return fmt.Errorf("outbox: Filter.Topic is %q: must be UTF-8 without NUL", f.Topic)
	case !metadata.IsText(f.Error):
		return fmt.Errorf("outbox: Filter.Error is %q: must be UTF-8 without NUL", f.Error)
	}
	return nil
}

func (f Filter) state() State { return or(f.State, Parked) }

// source returns the table that the rows are in, and the column of Entry.Since.
func (a *Admin) source(f Filter) (table, since string) {
	switch f.state() {
	case Scheduled:
		return a.table("scheduled"), "deliver_after"
	case Deferred:
		return a.table("outbox"), "not_before"
	}
	return a.table("outbox"), "parked_at"
}

// where returns the Filter as a condition, and adds its values to args.
func (f Filter) where(args *[]any) string {
	all := []string{f.state().where()}
	if f.ID != 0 {
		all = append(all, `id = `+argument(args, f.ID)+`::bigint`)
	}
	if f.Topic != "" {
		all = append(all, topicIs(args, f.Topic))
	}
	if f.Key != nil {
		all = append(all, keyIs(args, f.Key))
	}
	if f.Error != "" {
		all = append(all, `position(`+argument(args, f.Error)+`::text IN last_error) > 0`)
	}
	return strings.Join(all, ` AND `)
}

// where is a state as a condition; that of what is parked has a partial index.
func (s State) where() string {
	switch s {
	case Scheduled:
		return `true`
	case Deferred:
		return `parked_at IS NULL AND not_before IS NOT NULL`
	}
	return `parked_at IS NOT NULL`
}

// argument adds a value to args and returns its placeholder.
func argument(args *[]any, value any) string {
	*args = append(*args, value)
	return fmt.Sprintf("$%d", len(*args))
}

// topicIs is the condition that a topic is one, or like one in which * stands for anything.
func topicIs(args *[]any, pattern string) string {
	if !strings.Contains(pattern, "*") {
		return `topic = ` + argument(args, pattern) + `::text`
	}
	like := strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`, `*`, `%`).Replace(pattern)
	return `topic LIKE ` + argument(args, like) + `::text`
}

// keyIs is the condition that the ordering key is one. Indexes have its hash.
func keyIs(args *[]any, key []byte) string {
	p := argument(args, key)
	return `ordering_key = ` + p + `::bytea AND sha256(ordering_key) = sha256(` + p + `::bytea)`
}
