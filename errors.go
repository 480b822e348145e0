package oncemill

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"

	"github.com/oncemill/oncemill/internal/dbcheck"
)

var (
	// ErrNoKey means that the idempotency key is empty.
	ErrNoKey = errors.New("no idempotency key")

	// ErrKeyReused means that the key is claimed by a message with another
	// fingerprint: a producer has given one key to two messages. Running it
	// again cannot help; the producer has to be mended.
	ErrKeyReused = errors.New("idempotency key was used before for another payload")

	// ErrInFlight means that the key is being handled by another delivery at
	// this moment. A later delivery will find out how that ended.
	ErrInFlight = errors.New("idempotency key is being handled by another delivery")

	// ErrSettled means that the effect of the key has happened, or never will: see
	// Error.Held for which, and for the result.
	ErrSettled = errors.New("idempotency key is settled")

	// ErrInDoubt means that an attempt at the effect has ended and nobody knows
	// whether it happened.
	ErrInDoubt = errors.New("effect is in doubt")

	// ErrFenced means that a claim is no longer its caller's: it was taken over, or
	// released.
	ErrFenced = errors.New("claim was taken over")

	// ErrLeaseOver is the cause for which an effect's context ends when the lease is
	// about to.
	ErrLeaseOver = errors.New("lease of the claim is about to end")

	// ErrResultTooLarge means that a result has more than MostResult bytes.
	ErrResultTooLarge = errors.New("result is too large")

	// ErrTooOld means that the message is older than the claims that the purge
	// has left, so that nobody can tell whether it was handled before. It is
	// not run.
	ErrTooOld = errors.New("message is older than the retention of its claims")

	// ErrNoTx means that there is no transaction: the zero Tx was used, which is
	// what TxFromContext returns where there is none.
	ErrNoTx = errors.New("no transaction in the context: is middleware.Once or consumers.Stack on the router?")

	// ErrTxEnded means that a Tx was used after the function that received it
	// had returned.
	ErrTxEnded = errors.New("transaction has ended")

	// ErrTxAborted means that a function returned nil although a statement of
	// its transaction had failed, so that Postgres could only roll it back.
	ErrTxAborted = errors.New("function returned nil but its transaction is aborted")

	// ErrTxControl means that a function tried to begin, commit or roll back the
	// transaction that it had been lent. The transaction is rolled back.
	ErrTxControl = errors.New("transaction control is not for the handler: return nil to commit, an error to roll back, or use SAVEPOINT")

	// ErrNested means that Once was called inside of another Once.
	ErrNested = errors.New("a transaction is already in the context: call Once once per message, outermost")

	// ErrNoClaim means that a handler that makes effects outside of Postgres runs
	// without a claim.
	ErrNoClaim = errors.New("no claim in the context: is middleware.Guard on the router?")

	// ErrProviderAway means that an effect could not be made for a reason that has
	// nothing to do with the message: see ProviderAway.
	ErrProviderAway = errors.New("provider is away")

	// ErrIdle means that a handler has done nothing in its transaction for so
	// long that Postgres has ended it: longer than Inbox.IdleTimeout.
	ErrIdle = errors.New("no statement for longer than Inbox.IdleTimeout: Postgres has ended the transaction")

	// ErrDrained means that the context was cancelled and the function did not
	// end within DrainTimeout. What it wrote is rolled back, unless the COMMIT
	// was already under way.
	ErrDrained = errors.New("not finished within the drain timeout")

	// ErrUnavailable means that the database could not be reached, refused
	// connections, broke one off, or takes no writes.
	ErrUnavailable = errors.New("database unavailable")

	// ErrReadOnly means that the database is a replica, or its sessions are
	// read-only.
	ErrReadOnly = dbcheck.ErrReadOnly

	// ErrSchema means that Oncemill's tables are missing from the database, too
	// old or too new for this build.
	ErrSchema = dbcheck.ErrSchema
)

// An Op says what failed: how far Once or Claim had come, or which method of a Claim
// it was.
type Op string

// The steps of Once and Claim, in their order, and what ends a claim.
const (
	OpKey     Op = "key"     // before anything was sent to the database
	OpBegin   Op = "begin"   // opening the transaction
	OpClaim   Op = "claim"   // claiming the key in it
	OpHandler Op = "handler" // running the function
	OpCommit  Op = "commit"  // committing; the outcome may be unknown
	OpExtend  Op = "extend"
	OpSettle  Op = "settle"
	OpFail    Op = "fail"
	OpRelease Op = "release"
	OpDoubt   Op = "doubt"
	OpResolve Op = "resolve"
)

// An Error is what every method of a Consumer returns. errors.Is finds the
// sentinels of this package in it, and whatever the function returned.
type Error struct {
	Op       Op
	Consumer string
	Key      string // as the caller gave it
	Err      error

	// Held is the claim by which the key is taken, with ErrSettled, ErrInFlight,
	// ErrInDoubt, ErrFenced and ErrKeyReused, where it is known. With ErrSettled it
	// has what the claim was settled with.
	Held *Held
}

// Error says what failed, for which consumer and key. A key longer than 100
// bytes is cut.
func (e *Error) Error() string {
	key := e.Key
	if len(key) > 100 {
		key = key[:100] + "..."
	}
	return fmt.Sprintf("oncemill: %s consumer=%s key=%s: %v", e.Op, quoteIfOdd(e.Consumer), quoteIfOdd(key), e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

func quoteIfOdd(s string) string {
	if quoted := strconv.Quote(s); s == "" || strings.ContainsRune(s, ' ') || len(quoted) != len(s)+2 {
		return quoted
	}
	return s
}

// IsHandlerError reports whether err, as returned by Once, is the handler's own
// failure: one that may well come again however often the message is
// delivered. Only such errors should count towards a dead letter. Keys in
// flight, an unreachable database or provider, deadlocks, serialization failures and
// shutdown are not.
func IsHandlerError(err error) bool {
	var e *Error
	if !errors.As(err, &e) || errors.Is(err, ErrUnavailable) || errors.Is(err, ErrDrained) || errors.Is(err, ErrProviderAway) || IsSerialization(err) {
		return false
	}
	switch e.Op {
	case OpHandler:
		return true
	case OpCommit:
		// What Postgres answers to COMMIT comes of deferred constraints and their
		// triggers, which are the handler's.
		state := sqlState(err)
		return state != "" && !strings.HasPrefix(state, "57")
	default:
		return false
	}
}

// IsSerialization reports whether err comes from two transactions that got into
// each other's way: a deadlock, a serialization failure, a lock that was not
// to be had in time, or a table that was altered under a prepared query. The same message
// may well succeed at once when it runs again.
func IsSerialization(err error) bool {
	if errors.Is(err, errStale) {
		return true
	}
	switch sqlState(err) {
	case "40001", "40P01", "55P03":
		return true
	}
	return false
}

// sqlState returns the SQLSTATE of a Postgres error in err's tree, "" if there is none.
func sqlState(err error) string { return dbcheck.SQLState(err) }

// isUnavailable reports whether a database call failed because of the
// connection or the server's state, not because of the statement.
func isUnavailable(err error) bool {
	if err == nil {
		return false
	}
	if state := sqlState(err); state != "" {
		return unavailableState(state)
	}
	var network net.Error
	for _, target := range []error{driver.ErrBadConn, sql.ErrConnDone, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed} {
		if errors.Is(err, target) {
			return true
		}
	}
	return errors.As(err, &network) && !errors.Is(err, context.DeadlineExceeded)
}

// unavailableState tells by SQLSTATE: connection exceptions, rejected
// credentials, insufficient resources, operator intervention (but not a
// cancelled query), system errors, a database that does not exist, a session
// ended for idling, and a server that became read-only.
func unavailableState(state string) bool {
	for _, prefix := range []string{"08", "28", "53", "57P", "58", "3D000", "25P03", "25006"} {
		if strings.HasPrefix(state, prefix) {
			return true
		}
	}
	return false
}

// markUnavailable adds ErrUnavailable to err where it belongs there.
func markUnavailable(err error) error {
	if isUnavailable(err) && !errors.Is(err, ErrUnavailable) {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}
