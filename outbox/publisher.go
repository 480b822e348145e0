package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/internal/txn"
	"github.com/oncemill/oncemill/schema"
)

// A Publisher is a message.Publisher that writes messages to the outbox table
// instead of sending them. One Publisher serves a whole process: it finds the
// transaction to write to in each message's context, where oncemill's Once has
// put it. Its zero value is ready to use. Do not copy it after first use.
type Publisher struct {
	// Schema is the Postgres schema that holds the table outbox. "" means
	// "oncemill".
	Schema string

	// DB lets the Publisher take messages without a transaction in their
	// context: it writes each Publish call in a transaction of its own. A
	// handler that forgets its context then publishes even if it fails
	// afterwards; nil turns that into ErrNoTx.
	DB *sql.DB

	// Notify is where the Publisher tells relays, by NOTIFY, that there is
	// something to publish: after the transaction has committed, on a connection
	// of its own, at most once in ten milliseconds however many transactions
	// commit. It is a hint: relays poll in any case. nil means that relays only
	// poll. Usually it is the same pool as everything else's.
	Notify *sql.DB

	// Logger hears of a NOTIFY that failed. nil means slog.Default().
	Logger *slog.Logger

	bell bell
}

var _ message.Publisher = (*Publisher)(nil)

// Publish writes msgs to the outbox, in their order. The transaction in the
// messages' context decides whether and when they are sent. All messages of one
// call must have the same transaction, or none; without one Publish returns
// ErrNoTx, unless the Publisher has a DB.
//
// The UUID may be empty. Metadata may hold any bytes; OrderingKeyMetadata among
// them is stored as the row's ordering key. A nil payload is stored as none, a
// tombstone, which an empty one is not. A topic or UUID that
// contains NUL or is not UTF-8 is refused with ErrInvalid, as are a nil message
// and an empty topic. An error is an *Error.
func (p *Publisher) Publish(topic string, msgs ...*message.Message) error {
	rows, err := encode(topic, msgs)
	if err != nil || len(rows) == 0 {
		return err
	}
	ctx := msgs[0].Context()
	handle, err := commonTx(topic, msgs)
	switch {
	case err != nil:
		return err
	case handle != nil:
		err = p.join(ctx, handle, rows)
	case p.DB != nil:
		err = p.publishAlone(ctx, rows)
	default:
		return &Error{Topic: topic, UUID: msgs[0].UUID, Index: 0, Err: ErrNoTx}
	}
	if err != nil {
		return &Error{Topic: topic, Index: -1, Err: err}
	}
	return nil
}

// commonTx returns the one transaction of all messages, nil if none has one.
func commonTx(topic string, msgs []*message.Message) (*txn.Handle, error) {
	first, _ := txn.From(msgs[0].Context())
	for i, msg := range msgs[1:] {
		handle, _ := txn.From(msg.Context())
		switch {
		case handle == first:
		case handle == nil:
			return nil, &Error{Topic: topic, UUID: msg.UUID, Index: i + 1, Err: ErrNoTx}
		case first == nil:
			return nil, &Error{Topic: topic, UUID: msgs[0].UUID, Index: 0, Err: ErrNoTx}
		default:
			return nil, &Error{Topic: topic, UUID: msg.UUID, Index: i + 1, Err: errTwoTx}
		}
	}
	return first, nil
}

var errTwoTx = errors.New("it belongs to another transaction than the call's first message (publish the messages of each transaction in a call of their own)")

// join writes rows to a transaction that somebody else will end. The message's
// end must not cancel the statement: that would break the connection under
// everything else that the transaction holds. Where the transaction has several
// members, all of their rows are written at its end.
func (p *Publisher) join(ctx context.Context, tx *txn.Handle, rows []encodedRow) error {
	later, err := tx.AtEnd("outbox "+schema.Quote(p.Schema), func() txn.Writer { return &rowWriter{schema: p.Schema} }, func(w txn.Writer) {
		w.(*rowWriter).add(rows)
	})
	if !later {
		err = insert(context.WithoutCancel(ctx), tx.ExecContext, p.Schema, rows)
	}
	if err != nil {
		return err
	}
	if p.Notify != nil {
		tx.AfterCommit(p.Wake)
	}
	return nil
}

// publishAlone writes rows in a transaction of their own. All of it may be
// cancelled but the COMMIT: with a synchronous standby a cancelled COMMIT reports
// success before the rows are replicated.
func (p *Publisher) publishAlone(ctx context.Context, rows []encodedRow) error {
	txCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	begun := context.AfterFunc(ctx, cancel)
	tx, err := p.DB.BeginTx(txCtx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if !begun() {
		err = errors.Join(context.Cause(ctx), err)
	}
	if err != nil {
		return err // a transaction that has begun ends with txCtx
	}
	defer tx.Rollback()
	if err := insert(ctx, tx.ExecContext, p.Schema, rows); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit (it may have succeeded): %w", err)
	}
	p.Wake()
	return nil
}

// Wake tells relays that there is something to publish, if Notify is set. Only
// code that uses InTx needs it: call it after the transaction has committed.
// It returns at once.
func (p *Publisher) Wake() {
	if p.Notify != nil {
		p.bell.ring(p.notify)
	}
}

// Close does nothing, and the Publisher can be used afterwards. Watermill's
// router closes a handler's publisher when that handler stops, even if other
// handlers go on using it.
func (p *Publisher) Close() error { return nil }

// An Executor is the part of a transaction that publishing takes. *sql.Tx and
// oncemill.Tx have it. A *sql.DB has it too, but gives no atomicity: set
// Publisher.DB instead.
type Executor interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// A TxPublisher is a message.Publisher that writes to one transaction. It lives
// as long as that transaction.
type TxPublisher struct {
	tx     Executor
	schema string
}

var _ message.Publisher = TxPublisher{}

// InTx returns a message.Publisher that writes to tx, for code that begins and
// ends transactions itself. The caller commits. Relays hear of the messages at
// their next poll, or at once if the caller calls Publisher.Wake after the
// commit. It writes to the schema "oncemill"; for another use Publisher.InTx.
func InTx(tx Executor) TxPublisher { return TxPublisher{tx: tx} }

// InTx is like the function InTx, for the Publisher's schema.
func (p *Publisher) InTx(tx Executor) TxPublisher { return TxPublisher{tx: tx, schema: p.Schema} }

// Publish writes msgs to the transaction, in their order, whatever their
// contexts hold. Its errors are those of Publisher.Publish but for ErrNoTx.
func (p TxPublisher) Publish(topic string, msgs ...*message.Message) error {
	rows, err := encode(topic, msgs)
	if err != nil || len(rows) == 0 {
		return err
	}
	if err := insert(context.WithoutCancel(msgs[0].Context()), p.tx.ExecContext, p.schema, rows); err != nil {
		return &Error{Topic: topic, Index: -1, Err: err}
	}
	return nil
}

// Close does nothing.
func (p TxPublisher) Close() error { return nil }
