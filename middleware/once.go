package middleware

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/outbox"
)

var (
	// ErrAcked means that the message was acknowledged before its transaction
	// was committed, by a subscriber or a middleware outside of Once. If it were
	// run and failed, nobody would deliver it again.
	ErrAcked = errors.New("message was acknowledged before Once: remove what acknowledges it early, such as InstantAck")

	// ErrNacked means that the handler nacked the message and returned nil.
	ErrNacked = errors.New("handler nacked the message but returned nil: return an error instead")

	// ErrPoisoned means that a PoisonQueue middleware inside of Once swallowed
	// the handler's error, so that half of its writes would have been committed.
	ErrPoisoned = errors.New("a PoisonQueue inside of Once swallowed the handler's error: add it before Once, or use consumers.Stack")

	// ErrNoConsumer means that Once or Guard does not know in whose name to claim.
	ErrNoConsumer = errors.New("no consumer to claim for: set the field Consumer, since the message did not come through a router's handler")

	// ErrNoTopic means that the handler returned messages but has no topic to
	// publish to.
	ErrNoTopic = errors.New("handler returned messages but has no publish topic: add it with AddHandler, or publish in the handler")
)

// Once is a middleware that runs a handler in a transaction in which the
// message's idempotency key is claimed. The messages that the handler returns
// are written to the outbox in the same transaction; the router gets none of
// them. A message whose key is claimed already is acknowledged without being
// run.
//
// The handler finds the transaction with oncemill.TxFromContext in the message's
// context. It gets a copy of the message, so that nothing it does to the message
// lasts if it has to run again, which with Inbox.Batch may be because another message of
// its batch has failed; acknowledging or nacking the copy does not reach
// the broker before the commit.
//
// Give AddHandler an outbox.Publisher to publish with. Without Once it refuses
// to publish, so that forgetting the middleware cannot go unnoticed.
type Once struct {
	// Inbox holds the claims. Required.
	Inbox *oncemill.Inbox

	// Consumer is the name in which keys are claimed. "" means the name of the
	// router's handler, so that one Once serves all handlers of a router; then a
	// handler that is renamed forgets what it has handled.
	Consumer string

	// Key tells a message's idempotency key. nil means ByUUID.
	Key KeyFunc

	// Fingerprint tells what identifies the message's content, such as
	// PayloadFingerprint. With it, a key that comes again with another content
	// is an oncemill.ErrKeyReused instead of a duplicate. nil: not compared.
	Fingerprint func(msg *message.Message) ([]byte, error)

	// Outbox writes the messages that the handler returns. nil means an
	// outbox.Publisher in the Inbox's schema that wakes relays through the
	// Inbox's database.
	Outbox *outbox.Publisher

	warned *sync.Once
}

// Middleware is a message.HandlerMiddleware. It panics if Inbox is nil or set up
// wrongly, and if Consumer cannot be a consumer's name.
func (o Once) Middleware(h message.HandlerFunc) message.HandlerFunc {
	if o.Inbox == nil {
		panic("oncemill: middleware.Once.Inbox is nil: set it to your *oncemill.Inbox")
	}
	if o.Consumer != "" {
		o.Inbox.Consumer(o.Consumer)
	}
	o.Outbox = o.Publisher()
	o.warned = new(sync.Once)
	return func(msg *message.Message) ([]*message.Message, error) {
		return nil, o.handle(msg, h)
	}
}

// Publisher returns what Once writes returned messages with: Outbox, or its
// default.
func (o Once) Publisher() *outbox.Publisher {
	if o.Outbox != nil {
		return o.Outbox
	}
	return defaultPublisher(o.Inbox)
}

func (o Once) handle(msg *message.Message, h message.HandlerFunc) error {
	if isClosed(msg.Acked()) {
		return fmt.Errorf("oncemill: message %q: %w", msg.UUID, ErrAcked)
	}
	consumer, key, opts, err := o.Claim(msg)
	if err != nil {
		return err
	}
	return consumer.OnceWith(msg.Context(), key, opts, func(ctx context.Context, _ oncemill.Tx) error {
		return o.run(ctx, msg, h)
	})
}

// Claim returns what Once claims for msg. The error is an oncemill.ErrNoKey, if
// the message has no key, or an ErrNoConsumer; in the first case the consumer is
// returned nevertheless.
func (o Once) Claim(msg *message.Message) (c *oncemill.Consumer, key string, opts oncemill.ClaimOptions, err error) {
	return identity{"Once", o.Inbox, o.Consumer, o.Key, o.Fingerprint}.claim(msg)
}

// run runs the handler on a copy of the message, and writes what it returns to
// the outbox.
func (o Once) run(ctx context.Context, msg *message.Message, h message.HandlerFunc) error {
	produced, err := runOnCopy(ctx, msg, h)
	switch {
	case err != nil:
		return err
	case isClosed(msg.Acked()):
		return ErrAcked
	case len(produced) == 0:
		return nil
	}
	o.warnOfDetour(ctx)
	return publish(ctx, o.Outbox, msg, produced)
}

// warnOfDetour says once if a handler's messages will not take the way that its
// router was told.
func (o Once) warnOfDetour(ctx context.Context) {
	publisher := message.PublisherNameFromCtx(ctx)
	if o.Inbox.Logger == nil || publisher == "" || publisher == "outbox.Publisher" {
		return
	}
	o.warned.Do(func() {
		o.Inbox.Logger.WarnContext(ctx, "oncemill: what this handler returns goes to the outbox, for a relay to send, and not to its publisher; give AddHandler an *outbox.Publisher",
			"handler", message.HandlerNameFromCtx(ctx), "publisher", publisher)
	})
}
