package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"
)

const (
	createSettlements = `CREATE TABLE settlements (consumer text, key text, receipt text, child text, token bigint)`
	insertSettlement  = `INSERT INTO settlements (consumer, key, receipt, child, token) VALUES ($1, $2, $3, $4, $5)`
)

const effectTimeout = time.Second

// A guarded worker makes effects at the provider.
type guardedWorker struct {
	*bench
	caller    *caller
	publisher *outbox.Publisher
}

// workGuarded handles charges, which the provider makes once for each key and can be asked
// about, and mails, of which nobody may know what became.
func workGuarded(ctx context.Context, s setting) error {
	b, err := newBench(s)
	if err != nil {
		return err
	}
	defer b.close()
	inbox := b.inbox()
	w := &guardedWorker{b, newCaller(s.Provider), &outbox.Publisher{Notify: b.db}}
	charging := middleware.Guard{
		Inbox: inbox, Consumer: charges, Lease: lease, Timeout: effectTimeout,
		KeyLifetime: time.Hour, Ask: w.ask, LandingBound: time.Second, Backoff: 200 * time.Millisecond,
	}
	mailing := middleware.Guard{Inbox: inbox, Consumer: mails, Lease: lease, Timeout: effectTimeout}
	var routers []*message.Router
	for topic, guard := range map[string]*middleware.Guard{charges: &charging, mails: &mailing} {
		router, err := b.router()
		if err != nil {
			return err
		}
		if err := (consumers.Stack{Guard: guard}).Apply(ctx, router); err != nil {
			return err
		}
		router.AddHandler(topic, topic, b.broker.subscriber(topic), receipts, guard.Publisher(), w.handler(topic))
		routers = append(routers, router)
	}
	resolver := charging.Resolver()
	resolver.MostBackoff, resolver.Poll, resolver.Timeout, resolver.Concurrency = time.Second, 200*time.Millisecond, time.Second, 8
	return b.run(ctx, resolver.Run, routers...)
}

func (w *guardedWorker) handler(kind string) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		claim, ok := oncemill.ClaimFromContext(msg.Context())
		if !ok {
			return nil, oncemill.ErrNoClaim
		}
		w.trace.note(msg.UUID, "attempt %d, token %d", claim.Attempt(), claim.Token())
		ctx, cancel := context.WithTimeout(msg.Context(), effectTimeout)
		defer cancel()
		receipt, err := w.caller.want(ctx, kind, msg.UUID, claim.ProviderKey())
		w.trace.note(msg.UUID, "the provider says %q, %v", receipt, err)
		switch {
		case errors.Is(err, errRefused):
			return nil, oncemill.NeverWill(err)
		case err != nil:
			return nil, err
		}
		w.linger()
		child := message.NewMessage(watermill.NewUUID(), []byte(receipt))
		claim.OnSettle(func(ctx context.Context, tx oncemill.Tx) error {
			_, err := tx.ExecContext(ctx, insertSettlement, kind, msg.UUID, receipt, child.UUID, claim.Token())
			return err
		})
		return []*message.Message{child}, nil
	}
}

// linger is what a handler still has to do, often enough, when its effect has been made: in
// that time it may be frozen.
func (w *guardedWorker) linger() {
	if rand.IntN(2) == 0 {
		time.Sleep(time.Duration(rand.IntN(700)) * time.Millisecond)
	}
}

// ask asks the provider what became of a charge.
func (w *guardedWorker) ask(ctx context.Context, d oncemill.InDoubt) (oncemill.Resolution, error) {
	receipt, ok, err := w.caller.find(ctx, d.ProviderKey())
	w.trace.note(d.Key, "asked about token %d, the provider says %q, %t, %v", d.Token, receipt, ok, err)
	switch {
	case err != nil:
		return oncemill.Resolution{}, err
	case !ok:
		return oncemill.Resolution{Verdict: oncemill.NotHappened, Note: "the provider has not heard of it"}, nil
	case receipt == "":
		return oncemill.Resolution{Verdict: oncemill.Never, Note: "the provider has refused it"}, nil
	}
	return oncemill.Resolution{Verdict: oncemill.Happened, Note: "the provider has made it", Settle: func(ctx context.Context, tx oncemill.Tx) error {
		child := message.NewMessage(watermill.NewUUID(), []byte(receipt))
		child.SetContext(ctx)
		if _, err := tx.ExecContext(ctx, insertSettlement, charges, d.Key, receipt, child.UUID, d.Token); err != nil {
			return err
		}
		return w.publisher.Publish(receipts, child)
	}}, nil
}
