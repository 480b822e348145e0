package consumers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	wm "github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/delivery"
	"github.com/oncemill/oncemill/internal/storedkey"
	"github.com/oncemill/oncemill/outbox"
)

// Metadata that a dead letter has beside the message's own and those of
// Watermill's PoisonQueue (reason_poisoned, topic_poisoned, handler_poisoned,
// subscriber_poisoned).
const (
	DeadConsumer = "oncemill-dead-consumer" // in whose name the message was claimed
	DeadKey      = "oncemill-dead-key"      // under which key, as the table claims has it; missing where it had none of its own
	DeadReused   = "oncemill-dead-reused"   // the same, where another message has the key
	DeadErrors   = "oncemill-dead-errors"   // the number of handler errors
	DeadUUID     = "oncemill-dead-uuid"     // the message's UUID; the letter has its own
	DeadPosition = "oncemill-dead-position" // its place in the broker, where known
	DeadAt       = "oncemill-dead-at"       // when it was given up, RFC 3339 in UTC

	DeadPartition = deadPlace + "partition" // where a message from Kafka was
	DeadOffset    = deadPlace + "offset"    // the same
)

// deadPlace is in front of what a subscriber says of the message's place, as of all else.
const deadPlace = "oncemill-dead-"

// grave is what a dead letter is filed under.
type grave struct {
	consumer *oncemill.Consumer
	key      string
	reused   string // the message's own key, which another message has; "": none has
	cause    error
	errors   int
	opts     oncemill.ClaimOptions
}

// bury writes a dead letter to the outbox and settles the message's claim as
// dead, in one transaction. After that the message can be acknowledged. If its
// key is claimed by now, another delivery has been handled or buried, and this
// one is a duplicate, which is logged: a person may have sent the message again.
func (s Stack) bury(msg *message.Message, g grave) error {
	if message.SubscribeTopicFromCtx(msg.Context()) == s.DeadLetterTopic {
		return g.cause // its dead letter would come back here
	}
	letter, buried := deadLetterOf(msg, g), false
	opts := oncemill.ClaimOptions{Fingerprint: g.opts.Fingerprint, Outcome: oncemill.Dead}
	err := g.consumer.OnceWith(msg.Context(), g.key, opts, func(ctx context.Context, tx oncemill.Tx) error {
		buried = true
		if err := g.consumer.GiveUp(ctx, tx, g.key, g.cause.Error()); err != nil {
			return err
		}
		letter.SetContext(ctx)
		return s.claims().Publisher().Publish(s.DeadLetterTopic, letter)
	})
	switch {
	case errors.Is(err, oncemill.ErrKeyReused) && g.opts.Fingerprint != nil:
		return s.bury(msg, g.underReusedKey(msg))
	case err != nil:
		if isOutage(err) {
			info, _ := delivery.From(msg.Context())
			_ = s.hold(info, err)
		}
		return errors.Join(g.cause, err)
	case buried:
		s.logger().Error("oncemill: gave up a message, its dead letter is in the outbox",
			append(g.attributes(msg), "handler_errors", g.errors, "topic", s.DeadLetterTopic, "error", g.cause)...)
	default:
		s.logger().Warn("oncemill: a message that cannot be handled comes again after it was handled or given up; it is acknowledged, and there is no other dead letter of it",
			append(g.attributes(msg), "error", g.cause)...)
	}
	return nil
}

// attributes are what the log says of the message.
func (g grave) attributes(msg *message.Message) []any {
	key := g.key
	if g.reused != "" {
		key = g.reused
	}
	info, _ := delivery.From(msg.Context())
	return []any{
		"consumer", g.consumer.Name(), "key", key, "uuid", msg.UUID,
		"from", message.SubscribeTopicFromCtx(msg.Context()), "position", info.Position,
	}
}

// underReusedKey is for a message whose own key belongs to another one. It is filed by
// what tells it from others: its redelivery finds this claim, and whatever else comes
// with that key and payload has a dead letter of its own.
func (g grave) underReusedKey(msg *message.Message) grave {
	info, _ := delivery.From(msg.Context())
	id := "uuid:" + msg.UUID
	switch {
	case msg.UUID == "" && info.Position != "":
		id = "position:" + info.Position
	case msg.UUID == "": // as in keyWithoutKey
		id = "unknown:" + watermill.NewUUID()
	}
	g.reused = g.key
	g.key = fmt.Sprintf("%sreused:%x:%q:%s", reservedKey, g.opts.Fingerprint, id, g.key)
	g.opts.Fingerprint = nil
	g.cause = fmt.Errorf("%w (another message has its key, and keeps it: if this one is to be handled too, publish it with a key of its own)", g.cause)
	return g
}

// deadLetterOf copies the message and notes why it was given up. Metadata that a producer
// has made up must not pass for ours, and none may delay the letter or keep it from being
// published.
func deadLetterOf(msg *message.Message, g grave) *message.Message {
	letter := msg.Copy()
	maps.DeleteFunc(letter.Metadata, func(name, _ string) bool {
		return strings.HasPrefix(name, deadPlace) || name == outbox.DeliverAfterMetadata
	})
	ctx := msg.Context()
	letter.Metadata.Set(wm.ReasonForPoisonedKey, printable(g.cause.Error()))
	letter.Metadata.Set(wm.PoisonedTopicKey, message.SubscribeTopicFromCtx(ctx))
	letter.Metadata.Set(wm.PoisonedHandlerKey, message.HandlerNameFromCtx(ctx))
	letter.Metadata.Set(wm.PoisonedSubscriberKey, message.SubscriberNameFromCtx(ctx))
	letter.Metadata.Set(DeadConsumer, g.consumer.Name())
	letter.Metadata.Set(DeadErrors, strconv.Itoa(g.errors))
	letter.Metadata.Set(DeadAt, time.Now().UTC().Format(time.RFC3339Nano))
	switch {
	case g.reused != "":
		letter.Metadata.Set(DeadReused, headerSafe(storedkey.Of(g.reused)))
	case !strings.HasPrefix(g.key, reservedKey):
		letter.Metadata.Set(DeadKey, headerSafe(storedkey.Of(g.key)))
	}
	info, _ := delivery.From(ctx)
	if info.Position != "" {
		letter.Metadata.Set(DeadPosition, info.Position)
	}
	if info.Place != nil {
		for part, value := range info.Place() {
			letter.Metadata.Set(deadPlace+part, value)
		}
	}
	// Two consumers may give up the same message. Whoever handles the letters
	// should not take one of them for a duplicate of the other.
	letter.Metadata.Set(DeadUUID, headerSafe(msg.UUID))
	letter.UUID = watermill.NewUUID()
	return letter
}

// printable makes a header of an error: one line of at most 1 KiB.
func printable(s string) string {
	const most = 1024
	if len(s) > most {
		s = s[:most] + "..."
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
}

// headerSafe quotes what a broker's header could not carry, or not as it is.
func headerSafe(s string) string {
	if quoted := strconv.Quote(s); len(quoted) != len(s)+2 || strings.TrimSpace(s) != s {
		return quoted
	}
	return s
}

// reservedKey is in front of the keys that are made up here. Messages have none like that.
const reservedKey = storedkey.Dead

// keyWithoutKey is under which a message without a key is buried: its place in
// the broker. Where that is not known, a dead letter may come twice, which is
// better than never.
func keyWithoutKey(info delivery.Info) string {
	if info.Position != "" {
		return reservedKey + "position:" + info.Position
	}
	return reservedKey + "unknown:" + watermill.NewUUID()
}
