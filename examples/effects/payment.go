package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/payment"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/testcontainers/stripeserver"
)

var paymentKind = &kind{
	consumer: "payments",
	introduction: `%s orders are charged to their customers' cards. The worker is a Watermill handler,
payment.Charger, under middleware.Guard, on NATS JetStream and Postgres. The Stripe is
one on this machine: it honours idempotency keys and forgets them after 10 seconds,
shows a payment a second late in its lists, and loses replies. An attempt of which
nobody knows what became is repeated under its key, or Stripe is asked.

`,
	provider: "a Stripe of our own",
	unit:     "payment", verb: "charged",
	moments: []moment{beforeClaim, afterClaim, afterRequest, beforeSettle, whileSettling, beforeAck},
	faults:  []fault{lostReply, paid500, unpaid500, cutBefore, temporary, slow},
	asks:    true,

	newOrder: newCharge,
	serve:    serveStripe,
	equip:    equipCharger,
	ledger:   paymentLedger,
}

// What Stripe has in days and minutes takes seconds here. In the same proportions: the
// provider keeps a key for longer than we count on, and a payment has appeared in its
// lists before we believe that there is none.
const (
	stripeKeeps   = 10 * time.Second // the server: keys
	stripeShows   = time.Second      // the server: after it, a payment in lists
	stripeDelays  = 500 * time.Millisecond
	keyLifetime   = 8 * time.Second // the guard: less than stripeKeeps
	landingBound  = 4 * time.Second // the guard: more than stripeShows and stripeDelays
	chargeTimeout = time.Second
	chargeLease   = 2 * time.Second
)

const currency = "usd"

func amountOf(n int) int64 { return int64(1000 + n) }

// newCharge makes the n-th order.
func newCharge(n int) *message.Message {
	// A payment.Request, as JSON.
	payload := fmt.Sprintf(`{"amount": %d, "currency": %q, "customer": "cus_%d", "payment_method": "pm_card_visa", "metadata": {"order": %q}}`,
		amountOf(n), currency, n%100, key(n))
	msg := message.NewMessage(watermill.NewUUID(), []byte(payload))
	msg.Metadata.Set(orderID, key(n))
	return msg
}

// equipCharger makes the handler. The row and the receipt are written when the claim is
// settled, also where it is the resolver who does that.
func equipCharger(s setting, d *doom) (equipment, error) {
	d.watchRequests()
	stripe := &payment.Stripe{APIKey: stripeserver.DefaultAPIKey, BaseURL: s.Provider}
	publisher := &outbox.Publisher{}
	charger := &payment.Charger{
		Provider: stripe,
		Timeout:  chargeTimeout,
		OnSettle: func(ctx context.Context, tx oncemill.Tx, key string, r payment.Receipt) error {
			if _, err := tx.ExecContext(ctx, insertRecord, key, r.ID, r.Amount); err != nil {
				return err
			}
			receipt := newReceipt(key, r)
			receipt.SetContext(ctx)
			err := publisher.Publish(receipts, receipt)
			d.reached(whileSettling)
			return err
		},
	}
	return equipment{
		guard: middleware.Guard{
			Lease: chargeLease, Timeout: chargeTimeout, KeyLifetime: keyLifetime,
			Ask: charger.Ask, LandingBound: landingBound, Backoff: 200 * time.Millisecond,
			Probe: charger.Check, Describe: charger.Describe,
		},
		handle: charger.Handle,
		close:  stripe.Close,
	}, nil
}

// watchRequests has the worker's connections to Stripe tell when a payment's request was
// written. payment.Stripe makes its transport of the default one.
func (d *doom) watchRequests() {
	transport := http.DefaultTransport.(*http.Transport)
	dial := transport.DialContext
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		return requestLine{conn, d}, err
	}
}

type requestLine struct {
	net.Conn
	doom *doom
}

func (l requestLine) Write(data []byte) (int, error) {
	n, err := l.Conn.Write(data)
	if bytes.HasPrefix(data, []byte("POST ")) {
		l.doom.reached(afterRequest)
	}
	return n, err
}

func ledgerFile(dir string) string { return filepath.Join(dir, "ledger.jsonl") }

// paymentLedger reads what was charged.
func paymentLedger(dir string) (all []effect, err error) {
	entries, err := stripeserver.ReadLedger(ledgerFile(dir))
	for _, e := range entries {
		one := effect{Order: e.Metadata["order"], Key: e.Key, ID: e.ID, Amount: e.Amount}
		if e.Kind != payment.Charge || e.Currency != currency {
			one.Order = fmt.Sprintf("%s: a %s in %s", one.Order, e.Kind, e.Currency) // none of ours
		}
		all = append(all, one)
	}
	return all, err
}

// amountIn returns the amount in an order's payload, 0 if it has none.
func amountIn(payload []byte) int64 {
	var order struct {
		Amount int64 `json:"amount"`
	}
	_ = json.Unmarshal(payload, &order) // what is none has none
	return order.Amount
}
