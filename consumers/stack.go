package consumers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	wm "github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/delivery"
	"github.com/oncemill/oncemill/internal/grants"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"
)

// Never is the limit that is none.
const Never = -1

// A Stack puts the middlewares that handle messages exactly once onto a router,
// in the only order that works. From the outside in:
//
//   - dead letter: gives up a message whose handler keeps failing;
//   - retry: runs again at once what failed by a deadlock;
//   - recover: makes a panic an error;
//   - Once: the transaction; or, for effects outside of Postgres, Guard: the lease.
//
// Middlewares that the router had before are outside of these, which is the
// place for metrics. Those that are added later run inside of the transaction.
// Handlers need no middleware of their own for retries, panics or poisoned
// messages; inside, those would commit half of a handler's work.
type Stack struct {
	// Once is the transactional middleware. Its Inbox is required, unless there is a
	// Guard; the other fields are optional.
	Once middleware.Once

	// Guard takes the place of Once, for handlers whose effects are outside of
	// Postgres. An error after which the effect certainly did not happen is a handler's
	// error and counts towards MaxErrors, unless it is an oncemill.ErrProviderAway; an
	// effect in doubt does not, and is never a dead letter. Run its Resolver too, if it has Ask.
	Guard *middleware.Guard

	// MaxErrors is the number of deliveries that may end in an error or a panic
	// of the handler. With the last of them the message becomes a dead letter.
	// What is not the handler's fault does not count: a database that is away, a
	// key in flight, a deadlock, a shutdown. 0 means 20, which with the pauses of
	// the Subscribers takes about six minutes; Never means that it is delivered
	// until it succeeds.
	MaxErrors int

	// MaxDeliveries gives up a message that was delivered so often, whatever the
	// reason, where the subscriber tells. It is for messages that kill their
	// process before anything can be counted, and should be generous. 0 means
	// 1000; Never means no limit. Kafka does not count deliveries: there it has no
	// effect.
	MaxDeliveries int

	// DeadLetterTopic is where dead letters go, through the outbox. "" means
	// "dead-letter". Something has to receive it: a stream with that subject, or a
	// Kafka topic. A message that comes from this very topic is never given up.
	DeadLetterTopic string
}

// Apply checks the configuration and the database, and adds the middlewares to
// the router. Call it before the router runs, and once. ctx bounds the check; at
// most 10 seconds are spent on it.
//
// Settings with which what was acknowledged can be lost, or happen again, are logged as
// warnings, each once in a process: those of Postgres as by Inbox.Check, and when the
// router starts those of the streams and topics from which this module's subscribers
// read, also where these keep messages for longer than Inbox.Retention.
func (s Stack) Apply(ctx context.Context, router *message.Router) error {
	if err := s.setDefaults(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := s.inbox().Check(ctx); err != nil {
		return fmt.Errorf("oncemill: Stack: %w", err)
	}
	if err := s.checkRights(ctx); err != nil {
		return fmt.Errorf("oncemill: Stack: %w", err)
	}
	router.AddMiddleware(
		s.deadLetter,
		wm.Retry{
			MaxRetries:          3,
			InitialInterval:     10 * time.Millisecond,
			MaxInterval:         200 * time.Millisecond,
			Multiplier:          2,
			RandomizationFactor: 0.5,
			ShouldRetry:         func(p wm.RetryParams) bool { return oncemill.IsSerialization(p.Err) },
			ResetContextOnRetry: true,
		}.Middleware,
		wm.Recoverer,
		s.claims().Middleware,
	)
	router.AddSubscriberDecorators(tellKept(s.inbox().Retention))
	return nil
}

// checkRights finds out whether the role may count a handler's errors and give a message
// up, and for a Guard whether it may settle and park.
func (s *Stack) checkRights(ctx context.Context) error {
	inbox := s.inbox()
	needed := grants.On("handler_errors", "SELECT, INSERT, UPDATE, DELETE").And("events", "INSERT")
	if s.Guard != nil {
		needed = needed.And("claims", "UPDATE, DELETE").And(grants.Tokens, "USAGE").And("parked", "SELECT, INSERT, DELETE")
	}
	if err := needed.Check(ctx, inbox.DB, inbox.Schema, "handle messages"); err != nil {
		return err
	}
	return grants.On("outbox", "INSERT").Check(ctx, inbox.DB, s.claims().Publisher().Schema, "publish dead letters")
}

// A claimer is Once or Guard.
type claimer interface {
	Claim(msg *message.Message) (c *oncemill.Consumer, key string, opts oncemill.ClaimOptions, err error)
	Middleware(h message.HandlerFunc) message.HandlerFunc
	Publisher() *outbox.Publisher
}

func (s *Stack) claims() claimer {
	if s.Guard != nil {
		return s.Guard
	}
	return s.Once
}

func (s *Stack) inbox() *oncemill.Inbox {
	if s.Guard != nil {
		return s.Guard.Inbox
	}
	return s.Once.Inbox
}

func (s *Stack) setDefaults() error {
	switch {
	case s.Guard != nil && s.Once.Inbox != nil:
		return errors.New("oncemill: Stack.Once and Stack.Guard are both set: a handler has its effects in Postgres or outside; leave one of them out, and use a router for each")
	case s.Guard == nil && s.Once.Inbox == nil:
		return errors.New("oncemill: Stack.Once.Inbox is nil: set it to your *oncemill.Inbox")
	case s.MaxErrors < Never:
		return fmt.Errorf("oncemill: Stack.MaxErrors is %d: must be positive, 0 for the default or Never", s.MaxErrors)
	case s.MaxDeliveries < Never:
		return fmt.Errorf("oncemill: Stack.MaxDeliveries is %d: must be positive, 0 for the default or Never", s.MaxDeliveries)
	}
	if s.MaxErrors == 0 {
		s.MaxErrors = 20
	}
	if s.MaxDeliveries == 0 {
		s.MaxDeliveries = 1000
	}
	if s.DeadLetterTopic == "" {
		s.DeadLetterTopic = "dead-letter"
	}
	if s.Guard == nil {
		s.Once.Outbox = s.Once.Publisher()
		return nil
	}
	if err := s.Guard.Check(); err != nil {
		return err
	}
	guard := *s.Guard // the user's is left as it is
	guard.Outbox = guard.Publisher()
	s.Guard = &guard
	return nil
}

// deadLetter decides what becomes of a message that failed.
func (s Stack) deadLetter(h message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		// Before the handler runs: it may be what ends the process.
		if attempt, over := s.deliveredTooOften(msg); over {
			err := s.failed(msg, fmt.Errorf("%w: this is delivery %d", errTooOften, attempt))
			if s.Guard == nil || !errors.Is(err, oncemill.ErrInFlight) {
				return nil, err
			}
			// Its effect is in doubt, and must not be given up.
		}
		produced, err := h(msg)
		if err == nil {
			return produced, nil
		}
		return nil, s.failed(msg, err)
	}
}

// errTooOften is why a message is given up that was never seen to fail.
var errTooOften = errors.New("message was delivered more often than MaxDeliveries, and perhaps ended its process each time")

func (s Stack) deliveredTooOften(msg *message.Message) (attempt uint64, over bool) {
	info, _ := delivery.From(msg.Context())
	return info.Attempt, s.MaxDeliveries != Never && info.Attempt > uint64(s.MaxDeliveries)
}

// failed returns nil if the message has become a dead letter, and else the error
// for which it is to be delivered again.
func (s Stack) failed(msg *message.Message, cause error) error {
	info, _ := delivery.From(msg.Context())
	consumer, key, opts, err := s.claims().Claim(msg)
	g := grave{consumer: consumer, key: key, opts: opts, cause: cause}
	switch {
	case isOutage(cause):
		return s.hold(info, cause)
	case consumer == nil:
		return cause
	case err != nil && !errors.Is(cause, oncemill.ErrNoKey) && !errors.Is(cause, errTooOften):
		return cause // it has run, and only now nobody knows its key
	case err != nil:
		if g.key == "" { // else its claim decides whether it may be given up
			g.key = keyWithoutKey(info)
		}
		return s.bury(msg, g)
	case errors.Is(cause, oncemill.ErrKeyReused):
		return s.bury(msg, g.underReusedKey(msg))
	case errors.Is(cause, oncemill.ErrTooOld), errors.Is(cause, errTooOften):
		return s.bury(msg, g)
	case !isHandlerError(cause):
		return cause
	}
	if g.errors, err = consumer.CountError(msg.Context(), key, cause); err != nil {
		return s.hold(info, errors.Join(cause, err))
	}
	if s.MaxErrors == Never {
		return fmt.Errorf("%w (handler error %d)", cause, g.errors)
	}
	if g.errors < s.MaxErrors {
		return fmt.Errorf("%w (handler error %d, given up at %d)", cause, g.errors, s.MaxErrors)
	}
	return s.bury(msg, g)
}

// isOutage reports whether no message could have been handled: the database is
// away, or its tables or this role's rights are.
func isOutage(err error) bool {
	var e *oncemill.Error
	if errors.Is(err, oncemill.ErrUnavailable) || !errors.As(err, &e) {
		return errors.Is(err, oncemill.ErrUnavailable)
	}
	for _, ours := range []error{
		oncemill.ErrInFlight, oncemill.ErrInDoubt, oncemill.ErrSettled, oncemill.ErrKeyReused, oncemill.ErrTooOld, oncemill.ErrDrained,
		oncemill.ErrLeaseOver,
	} {
		if errors.Is(err, ours) {
			return false
		}
	}
	return (e.Op == oncemill.OpBegin || e.Op == oncemill.OpClaim) && !oncemill.IsSerialization(err)
}

// hold has the subscriber wait for the database.
func (s Stack) hold(info delivery.Info, cause error) error {
	if info.Hold != nil {
		info.Hold(s.inbox().Check)
	}
	return cause
}

func (s Stack) logger() *slog.Logger {
	if logger := s.inbox().Logger; logger != nil {
		return logger
	}
	return slog.Default()
}

// isHandlerError counts panics too: the recover middleware, which is outside of
// Once, has made plain errors of them. A panic over a lost connection has not
// come so far: Once returns it as what it is.
func isHandlerError(err error) bool {
	var panicked wm.RecoveredPanicError
	return oncemill.IsHandlerError(err) || errors.As(err, &panicked)
}
