package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/payment"
	"github.com/oncemill/oncemill/examples/brokerorders"
)

// consumer is the name in which orders are claimed.
const consumer = "desk"

// An order is what a message says. Its id is the idempotency key: two bots that have
// the same idea in the same minute make the same id of it.
type order struct {
	ID       string `json:"id"`
	Purpose  string `json:"purpose"` // "entry" or "exit"
	Side     string `json:"side"`    // "buy" or "sell"
	Symbol   string `json:"symbol"`
	Quantity string `json:"quantity"`
	Cents    int64  `json:"cents"` // what it is about, for the reports
}

func decode(payload []byte) (o order, err error) {
	if err := json.Unmarshal(payload, &o); err != nil {
		return o, fmt.Errorf("order: %w", err)
	}
	if o.Purpose != "entry" && o.Purpose != "exit" {
		return o, fmt.Errorf("order %s: purpose is %q: must be entry or exit", o.ID, o.Purpose)
	}
	return o, nil
}

// request makes of a message what the broker's provider takes.
func request(msg *message.Message) (payment.Request, error) {
	o, err := decode(msg.Payload)
	if err != nil {
		return payment.Request{}, oncemill.NeverWill(err)
	}
	return payment.Request{
		Kind: o.Side, Amount: o.Cents, Currency: "usd",
		Metadata: map[string]string{brokerorders.Symbol: o.Symbol, brokerorders.Quantity: o.Quantity},
	}, nil
}

type desk struct {
	db      *sql.DB
	inbox   *oncemill.Inbox
	charger payment.Charger
}

// place is the handler: it places one order.
func (d *desk) place(msg *message.Message) error {
	claim, ok := oncemill.ClaimFromContext(msg.Context())
	if !ok {
		return oncemill.ErrNoClaim
	}
	o, err := decode(msg.Payload)
	if err != nil {
		return oncemill.NeverWill(err)
	}
	if o.Purpose == "entry" {
		if err := d.mayEnter(msg.Context(), o); err != nil {
			return err
		}
	}
	claim.OnSettle(func(ctx context.Context, tx oncemill.Tx) error { return book(ctx, tx, o) })
	claim.OnFail(func(ctx context.Context, tx oncemill.Tx) error { return correct(ctx, tx, o) })
	_, err = d.charger.Handle(msg)
	return err
}

// ask finds out at the broker what became of an order in doubt. The rows are those
// that the handler would have written.
func (d *desk) ask(ctx context.Context, doubt oncemill.InDoubt) (oncemill.Resolution, error) {
	o, err := orderOf(doubt)
	if err != nil {
		return oncemill.Resolution{}, err
	}
	answer, err := d.charger.Ask(ctx, doubt)
	switch answer.Verdict {
	case oncemill.Happened:
		answer.Settle = func(ctx context.Context, tx oncemill.Tx) error { return book(ctx, tx, o) }
	case oncemill.Never:
		answer.Settle = func(ctx context.Context, tx oncemill.Tx) error { return correct(ctx, tx, o) }
	}
	return answer, err
}

// orderOf reads the order that is in doubt: from its message, or from what the claim's
// events have kept of it.
func orderOf(doubt oncemill.InDoubt) (order, error) {
	if doubt.Message != nil {
		return decode(doubt.Message.Payload)
	}
	if doubt.Payload == nil {
		return order{}, errors.New("neither its message nor its payload is there")
	}
	return decode(doubt.Payload)
}

// mayEnter refuses an entry where there is a position, and has it wait while an order
// for the same symbol is in doubt. Either says why.
func (d *desk) mayEnter(ctx context.Context, o order) error {
	since, err := openedBy(ctx, d.db, o.Symbol)
	if err != nil {
		return oncemill.DidNotHappen(err)
	}
	if since != "" {
		return oncemill.NeverWill(fmt.Errorf("no entry into %s: there is a position since order %s", o.Symbol, since))
	}
	var after oncemill.InDoubt
	for {
		const page = 100
		doubts, err := d.inbox.InDoubt(ctx, consumer, after, page)
		if err != nil {
			return oncemill.DidNotHappen(err)
		}
		for _, doubt := range doubts {
			if other, err := orderOf(doubt); err == nil && other.Symbol == o.Symbol && other.ID != o.ID {
				return oncemill.DidNotHappen(fmt.Errorf("entry into %s waits: order %s is in doubt since %s: %s", o.Symbol, other.ID, doubt.Since.Format("15:04:05"), doubt.Reason))
			}
		}
		if len(doubts) < page {
			return nil
		}
		after = doubts[len(doubts)-1]
	}
}
