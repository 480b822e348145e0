package middleware

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	wm "github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/delivery"
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

	// ErrNoConsumer means that Once does not know in whose name to claim.
	ErrNoConsumer = errors.New("no consumer to claim for: set Once.Consumer, since the message did not come through a router's handler")

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
// lasts if it has to run again; acknowledging or nacking the copy does not reach
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
	return &outbox.Publisher{Schema: o.Inbox.Schema, Notify: o.Inbox.DB}
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
	if c, err = o.consumer(msg); err != nil {
		return nil, "", opts, fmt.Errorf("oncemill: message %q: %w", msg.UUID, err)
	}
	key, opts, err = o.identify(msg)
	if err != nil {
		return c, "", oncemill.ClaimOptions{}, &oncemill.Error{Op: oncemill.OpKey, Consumer: c.Name(), Err: err}
	}
	return c, key, opts, nil
}

// consumer finds in whose name to claim.
func (o Once) consumer(msg *message.Message) (c *oncemill.Consumer, err error) {
	name := o.Consumer
	if name == "" {
		name = message.HandlerNameFromCtx(msg.Context())
	}
	if name == "" {
		return nil, ErrNoConsumer
	}
	defer func() { // the name of a handler is only seen here
		if unfit := recover(); unfit != nil {
			err = fmt.Errorf("%w (the handler's does not do: %v)", ErrNoConsumer, unfit)
		}
	}()
	return o.Inbox.Consumer(name), nil
}

// identify calls the user's functions. One that panics on a message does so on
// each delivery, so that is an error like any other.
func (o Once) identify(msg *message.Message) (key string, opts oncemill.ClaimOptions, err error) {
	defer func() {
		if panicked := recover(); panicked != nil {
			err = fmt.Errorf("%w: Key or Fingerprint panicked: %v", oncemill.ErrNoKey, panicked)
		}
	}()
	keyOf := o.Key
	if keyOf == nil {
		keyOf = ByUUID
	}
	if key, err = keyOf(msg); err != nil {
		return "", opts, noKey(err)
	}
	if key == "" {
		return "", opts, fmt.Errorf("%w: Key returned an empty one for message %q", oncemill.ErrNoKey, msg.UUID)
	}
	if o.Fingerprint != nil {
		if opts.Fingerprint, err = o.Fingerprint(msg); err != nil {
			return "", opts, noKey(fmt.Errorf("fingerprint: %w", err))
		}
	}
	opts.Origin = origin(msg)
	return key, opts, nil
}

func noKey(err error) error {
	if errors.Is(err, oncemill.ErrNoKey) {
		return err
	}
	return fmt.Errorf("%w: %w", oncemill.ErrNoKey, err)
}

// origin tells when a message was first written: to the outbox, or else to the
// broker. Zero: unknown.
func origin(msg *message.Message) time.Time {
	if t, err := time.Parse(time.RFC3339Nano, msg.Metadata.Get(outbox.OriginMetadata)); err == nil {
		return t
	}
	info, _ := delivery.From(msg.Context())
	return info.Time
}

// run runs the handler on a copy of the message, and writes what it returns to
// the outbox.
func (o Once) run(ctx context.Context, msg *message.Message, h message.HandlerFunc) error {
	own := ownCopy(ctx, msg)
	poisoned := msg.Metadata.Get(wm.ReasonForPoisonedKey)
	produced, err := h(own)
	switch {
	case err != nil:
		return err
	case isClosed(own.Nacked()):
		return ErrNacked
	case own.Metadata.Get(wm.ReasonForPoisonedKey) != poisoned:
		return ErrPoisoned
	case isClosed(msg.Acked()):
		return ErrAcked
	case len(produced) == 0:
		return nil
	}
	topic := message.PublishTopicFromCtx(ctx)
	if topic == "" {
		return ErrNoTopic
	}
	o.warnOfDetour(ctx)
	for _, out := range produced {
		if out == nil {
			continue // the outbox says which
		}
		carryOn(msg, out)
		out.SetContext(ctx) // where the outbox finds the transaction
	}
	return o.Outbox.Publish(topic, produced...)
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

// ownCopy copies all that a handler could change, the payload's bytes included.
func ownCopy(ctx context.Context, msg *message.Message) *message.Message {
	own := msg.Copy()
	own.Payload = append(message.Payload(nil), msg.Payload...)
	own.SetContext(ctx)
	return own
}

// carried are the metadata by which a chain of messages is followed: Watermill's
// correlation id, and W3C Trace Context and Baggage.
var carried = []string{wm.CorrelationIDMetadataKey, "traceparent", "tracestate", "baggage"}

// carryOn copies what identifies the chain of messages from one to the next,
// unless the handler has set it.
func carryOn(from, to *message.Message) {
	for _, name := range carried {
		value, ok := from.Metadata[name]
		if _, set := to.Metadata[name]; ok && !set {
			if to.Metadata == nil {
				to.Metadata = make(message.Metadata)
			}
			to.Metadata.Set(name, value)
		}
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
