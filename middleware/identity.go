package middleware

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	wm "github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/delivery"
	"github.com/oncemill/oncemill/internal/storedkey"
	"github.com/oncemill/oncemill/outbox"
)

// identity tells in whose name and under which key a message is claimed, for Once and
// Guard alike. Its fields are theirs.
type identity struct {
	of          string // Once or Guard
	inbox       *oncemill.Inbox
	consumer    string
	key         KeyFunc
	fingerprint func(msg *message.Message) ([]byte, error)
}

func (i identity) claim(msg *message.Message) (c *oncemill.Consumer, key string, opts oncemill.ClaimOptions, err error) {
	if c, err = i.consumerOf(msg); err != nil {
		return nil, "", opts, fmt.Errorf("oncemill: %s: message %q: %w", i.of, msg.UUID, err)
	}
	key, opts, err = i.identify(msg)
	if err != nil {
		return c, "", oncemill.ClaimOptions{}, &oncemill.Error{Op: oncemill.OpKey, Consumer: c.Name(), Err: noKeyOr(msg.Context(), err)}
	}
	return c, key, opts, nil
}

// consumerOf finds in whose name to claim.
func (i identity) consumerOf(msg *message.Message) (c *oncemill.Consumer, err error) {
	name := i.consumer
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
	return i.inbox.Consumer(name), nil
}

// identify calls the user's functions. One that panics on a message does so on
// each delivery, so that is an error like any other.
func (i identity) identify(msg *message.Message) (key string, opts oncemill.ClaimOptions, err error) {
	defer func() {
		if panicked := recover(); panicked != nil {
			err = fmt.Errorf("%w: Key or Fingerprint panicked: %v", oncemill.ErrNoKey, panicked)
		}
	}()
	keyOf := i.key
	if keyOf == nil {
		keyOf = func(msg *message.Message) (string, error) { return uuidOf(msg, i.of+".Key") }
	}
	if key, err = keyOf(msg); err != nil {
		return "", opts, noKey(err)
	}
	if key == "" {
		return "", opts, fmt.Errorf("%w: Key returned an empty one for message %q", oncemill.ErrNoKey, msg.UUID)
	}
	if strings.HasPrefix(key, storedkey.Dead) {
		return "", opts, fmt.Errorf("%w: keys must not begin with %s, as those of dead letters do, but that of message %q does: have the producer choose another one", oncemill.ErrNoKey, storedkey.Dead, msg.UUID)
	}
	if i.fingerprint != nil {
		if opts.Fingerprint, err = i.fingerprint(msg); err != nil {
			return "", opts, noKey(fmt.Errorf("fingerprint: %w", err))
		}
	}
	opts.Origin = origin(msg)
	return key, opts, nil
}

// noKeyOr tells a message that has no key from one that was given back while somebody
// was looking.
func noKeyOr(ctx context.Context, err error) error {
	if ended := ctx.Err(); ended != nil {
		return fmt.Errorf("%w: %v", ended, err)
	}
	return noKey(err)
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
	if written := msg.Metadata.Get(outbox.OriginMetadata); written != "" {
		if t, err := time.Parse(time.RFC3339Nano, written); err == nil {
			return t
		}
	}
	info, _ := delivery.From(msg.Context())
	return info.Time
}

func defaultPublisher(in *oncemill.Inbox) *outbox.Publisher {
	return &outbox.Publisher{Schema: in.Schema, Notify: in.DB}
}

// publish writes what a handler has returned for msg to the outbox, in the
// transaction that ctx carries.
func publish(ctx context.Context, to *outbox.Publisher, msg *message.Message, produced []*message.Message) error {
	topic := message.PublishTopicFromCtx(ctx)
	if topic == "" {
		return ErrNoTopic
	}
	for _, out := range produced {
		if out == nil {
			continue // the outbox says which
		}
		carryOn(msg, out)
		out.SetContext(ctx) // where the outbox finds the transaction
	}
	return to.Publish(topic, produced...)
}

// runOnCopy runs a handler on a copy of its message, and finds what it has hidden.
func runOnCopy(ctx context.Context, msg *message.Message, h message.HandlerFunc) (produced []*message.Message, err error) {
	own := ownCopy(ctx, msg)
	poisoned := msg.Metadata.Get(wm.ReasonForPoisonedKey)
	produced, err = h(own)
	switch {
	case err != nil:
	case isClosed(own.Nacked()):
		err = ErrNacked
	case own.Metadata.Get(wm.ReasonForPoisonedKey) != poisoned:
		err = ErrPoisoned
	}
	return produced, err
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
