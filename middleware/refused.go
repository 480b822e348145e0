package middleware

import (
	"context"
	"errors"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/delivery"
	"github.com/oncemill/oncemill/internal/hint"
)

// refused decides what becomes of a message whose key is taken.
func (g Guard) refused(msg *message.Message, c *oncemill.Consumer, key string, err error) error {
	var e *oncemill.Error
	switch {
	case errors.Is(err, oncemill.ErrSettled) && errors.As(err, &e):
		g.Inbox.Logger.InfoContext(msg.Context(), "oncemill: a message is a duplicate, and acknowledged: the effect of its key is settled",
			"consumer", c.Name(), "key", key, "uuid", msg.UUID, "outcome", string(e.Held.Outcome), "token", e.Held.Token)
		return nil
	case errors.Is(err, oncemill.ErrInFlight) && errors.As(err, &e) && e.Held != nil && !e.Held.InDoubt:
		g.delay(msg, e.Held.Remaining)
	case errors.Is(err, oncemill.ErrInFlight), errors.Is(err, oncemill.ErrLeaseOver):
		g.delay(msg, time.Second)
	case errors.Is(err, oncemill.ErrInDoubt) && errors.As(err, &e) && e.Op == oncemill.OpClaim:
		if e.Held.Parked {
			g.tell(msg.Context(), c.Name(), key, e.Held.Token, e.Held.Reason)
		}
		return nil
	}
	return err
}

// delay has a message that is about to be nacked come again when the other attempt is
// over at the latest.
func (g Guard) delay(msg *message.Message, remaining time.Duration) {
	const least, most, held = 50 * time.Millisecond, 30 * time.Second, time.Second
	pause := min(max(remaining, least), most)
	info, _ := delivery.From(msg.Context())
	if info.Delay != nil {
		info.Delay.Wish(pause)
		return
	}
	// Other subscribers may deliver at once what is nacked.
	delivery.Sleep(msg.Context(), min(pause, held))
}

func (g Guard) tell(ctx context.Context, consumer, key string, token int64, reason string) {
	if g.Ask != nil {
		g.Inbox.Logger.InfoContext(ctx, "oncemill: an effect is in doubt; its message is parked until the resolver knows",
			"consumer", consumer, "key", key, "token", token, "reason", reason)
		return
	}
	g.Inbox.Logger.WarnContext(ctx, "oncemill: an effect is in doubt; its message is parked. Find out by the provider key what became of it, then run the command with --happened, --not-happened or --never and a --note",
		"consumer", consumer, "key", key, "token", token, "provider_key", oncemill.ProviderKey(consumer, key),
		"command", hint.Resolve(g.Inbox.Schema, consumer, key, token), "reason", reason)
}
