package main

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/middleware"
)

// A kind is a kind of effect: all in which the demo of one differs from that of
// another.
type kind struct {
	consumer     string // in whose name the effects are claimed
	introduction string
	provider     string // what is started
	unit         string // what an effect is
	verb         string // what the provider does: "sent", "charged"

	moments []moment // at which workers are killed
	faults  []fault  // of the provider's

	// asks tells that the provider can be asked, so that nothing may stay in doubt. It
	// refuses nothing either.
	asks bool

	// newOrder makes the n-th order, from 1. Its payload is what the handler of this
	// kind reads; its metadata has the key.
	newOrder func(n int) *message.Message

	// serve is the provider. It says its address, and then what goes wrong.
	serve func(ctx context.Context, s setting) error

	// equip gives a worker its handler, and the guard that goes with it.
	equip func(s setting, d *doom) (equipment, error)

	// ledger reads what the provider has done, also while it runs.
	ledger func(dir string) ([]effect, error)

	// resolve tells a person what to do about a claim in doubt. "" where there are none.
	resolve string
}

// equipment is what a worker works with.
type equipment struct {
	guard  middleware.Guard // without its Inbox
	handle message.HandlerFunc
	close  func()
}

// An effect is one entry of a provider's ledger.
type effect struct {
	Order  string // whose effect it is, by what was sent or charged
	Key    string // the provider key under which it was made
	ID     string // the provider's
	Amount int64  // 0 where there is none
}

var kinds = map[string]*kind{"email": emailKind, "payment": paymentKind}

func (s setting) kind() *kind { return kinds[s.Kind] }

// The topics. Nothing is given up in the demo, but whoever uses a Stack has a place
// for dead letters.
const (
	orders      = "orders"
	receipts    = "receipts"
	deadLetters = "dead-letter"
)
