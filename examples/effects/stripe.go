package main

import (
	"context"

	"github.com/oncemill/oncemill/examples/internal/crew"
	"github.com/oncemill/oncemill/testcontainers/stripeserver"
)

// serveStripe is the provider of payments. What goes wrong with a request is by its
// order's number and by how often it has come.
func serveStripe(ctx context.Context, s setting) error {
	server, err := stripeserver.Start(stripeserver.Options{
		KeyLifetime: stripeKeeps, VisibleAfter: stripeShows, Delay: stripeDelays,
		Ledger: ledgerFile(s.Dir),
		Faults: func(c stripeserver.Call) stripeserver.Fault {
			n := numberOf(c.Params.Get("metadata[order]"))
			if c.Method != "POST" || n == 0 {
				return stripeserver.None // a question
			}
			t := troubleWith(n, c.Nth, s.Messages)
			if t.fault != stripeserver.None {
				t.is.say()
			}
			return t.fault
		},
	})
	if err != nil {
		return err
	}
	crew.Say(server.URL())
	<-ctx.Done()
	return server.Close()
}

// trouble is what goes wrong with a request.
type trouble struct {
	fault stripeserver.Fault
	is    fault
}

var troubles = map[int]trouble{
	3:  {stripeserver.CutAfter, lostReply},
	5:  {stripeserver.ErrorAfter, paid500},
	7:  {stripeserver.CutBefore, cutBefore},
	9:  {stripeserver.RateLimit, temporary},
	11: {stripeserver.SlowBefore, slow},
	13: {stripeserver.HangAfter, lostReply},
	15: {stripeserver.ErrorBefore, unpaid500},
	17: {stripeserver.HangBefore, cutBefore},
	19: {stripeserver.LockTimeout, temporary},
	21: {stripeserver.SlowAfter, slow},
	23: {stripeserver.Garbled, lostReply},
	25: {stripeserver.ErrorHalf, unpaid500},
	27: {stripeserver.Unavailable, temporary},
	29: {stripeserver.Forbidden, temporary},
	31: {stripeserver.Conflict, temporary},
	33: {stripeserver.Gateway, lostReply},
}

// troubleWith returns what goes wrong with the nth request of an order.
func troubleWith(order, nth, orders int) trouble {
	t := troubles[order%cycle]
	switch {
	case nth == 1 && t.is == unpaid500 && order > orders/2:
		// The key is of no use until Stripe has forgotten it, and nobody wants to wait
		// so long at the end.
	case nth == 1, nth == 2 && t.is == lostReply && order%(2*cycle) == 3:
		return t
	}
	return trouble{}
}
