package main

import (
	"context"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"
)

const (
	lease         = time.Minute
	effectTimeout = 20 * time.Second
)

// workGuarded handles charges: each is an effect at the provider, and has a receipt.
func workGuarded(ctx context.Context, s setting) error {
	b, err := newBench(s, 0)
	if err != nil {
		return err
	}
	provider := newCaller(s.Provider)
	publisher := &outbox.Publisher{Notify: b.db}
	guard := middleware.Guard{Inbox: b.inbox, Consumer: charges, Lease: lease, Timeout: effectTimeout, LandingBound: effectTimeout}
	guard.Ask = func(ctx context.Context, d oncemill.InDoubt) (oncemill.Resolution, error) {
		made, err := provider.find(ctx, d.Key)
		if err != nil || !made {
			return oncemill.Resolution{Verdict: oncemill.NotHappened, Note: "the provider has not made it"}, err
		}
		return oncemill.Resolution{Verdict: oncemill.Happened, Note: "the provider has made it", Settle: func(ctx context.Context, tx oncemill.Tx) error {
			now := strconv.FormatInt(time.Now().UnixNano(), 10) // when it was sent is not known where nothing is parked
			receipt := message.NewMessage(d.Key, []byte(now))
			receipt.SetContext(ctx)
			if _, err := tx.ExecContext(ctx, insertEffect, d.Key); err != nil {
				return err
			}
			return publisher.Publish(receipts, receipt)
		}}, nil
	}
	if err := (consumers.Stack{Guard: &guard}).Apply(ctx, b.router); err != nil {
		return err
	}
	handle := func(msg *message.Message) ([]*message.Message, error) {
		number, err := numberOf(msg)
		if err != nil {
			return nil, err
		}
		claim, ok := oncemill.ClaimFromContext(msg.Context())
		if !ok {
			return nil, oncemill.ErrNoClaim
		}
		if err := provider.charge(msg.Context(), msg.UUID); err != nil {
			return nil, err
		}
		claim.OnSettle(func(ctx context.Context, tx oncemill.Tx) error {
			_, err := tx.ExecContext(ctx, insertEffect, number)
			return err
		})
		return []*message.Message{message.NewMessage(msg.UUID, msg.Payload)}, nil
	}
	b.router.AddHandler(charges, charges, subscriber(b.broker, charges, 0), receipts, guard.Publisher(), handle)
	return b.run(ctx, guard.Resolver().Run)
}
