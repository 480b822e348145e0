package outbox

import (
	"errors"
	"fmt"

	"github.com/oncemill/oncemill/internal/dbcheck"
)

var (
	// ErrNoTx means that a message was published without a transaction in its
	// context, by a Publisher without a DB of its own. In a handler it usually
	// means that the message was made without the handler's context, or that
	// middleware.Once is missing.
	ErrNoTx = errors.New("no transaction in the message's context: make it with message.NewMessageWithContext(ctx, ...) or call msg.SetContext(ctx), with the ctx of the handler inside Once; or use outbox.InTx(tx)")

	// ErrInvalid means that a message cannot be stored as it is. The error's
	// text names the field and the remedy.
	ErrInvalid = errors.New("message cannot be stored")

	// ErrUnreachable means that no connection to the database could be had.
	ErrUnreachable = dbcheck.ErrUnreachable

	// ErrReadOnly means that the database is a replica or its sessions are
	// read-only.
	ErrReadOnly = dbcheck.ErrReadOnly

	// ErrSchema means that the database's schema is missing, too old or too new.
	// The error's text names the version found, the version needed and the
	// command that mends it.
	ErrSchema = dbcheck.ErrSchema
)

// An Error is what Publish returns. errors.Is finds ErrNoTx, ErrInvalid and the
// database's errors in it. Nothing of the call is stored, provided that the
// caller does not commit a transaction whose statement has failed.
type Error struct {
	Topic string
	UUID  string // of the message at fault, "" if the whole call failed
	Index int    // of the message at fault among the call's messages, -1 if the whole call failed
	Err   error
}

// Error says which topic and message failed, and why.
func (e *Error) Error() string {
	if e.Index < 0 {
		return fmt.Sprintf("outbox: publish topic=%q: %v", e.Topic, e.Err)
	}
	return fmt.Sprintf("outbox: publish topic=%q message=%d uuid=%q: %v", e.Topic, e.Index, e.UUID, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }
