package payment_test

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/payment"
	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/stripeserver"
)

const payload = `{"amount": 1050, "currency": "usd", "payment_method": "pm_card_visa", "metadata": {"order": "7"}}`

// till is a Charger with claims.
type till struct {
	*shop
	charger  *payment.Charger
	consumer *oncemill.Consumer
	inbox    *oncemill.Inbox
	database *testcontainers.Database
}

func newTill(t *testing.T) *till {
	t.Helper()
	database := testcontainers.Postgres(t)
	s := newShop(t, stripeserver.Options{})
	_, err := database.DB.Exec(`CREATE TABLE paid (key text, id text)`)
	must(t, err)
	inbox := &oncemill.Inbox{DB: database.DB}
	return &till{
		shop: s, inbox: inbox, consumer: inbox.Consumer("payments"), database: database,
		charger: &payment.Charger{Provider: s.Stripe, OnSettle: insertPaid},
	}
}

func insertPaid(ctx context.Context, tx oncemill.Tx, key string, r payment.Receipt) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO paid VALUES ($1, $2)`, key, r.ID)
	return err
}

// claim begins an attempt.
func (s *till) claim(key string) *oncemill.Claim {
	s.t.Helper()
	claim, err := s.consumer.Claim(within(s.t), key, oncemill.ClaimOptions{Lease: 30 * time.Second, KeyLifetime: payment.StripeKeyLifetime})
	must(s.t, err)
	return claim
}

// attempt runs the handler under a claim.
func (s *till) attempt(claim *oncemill.Claim, payload string) error {
	s.t.Helper()
	ctx, cancel := claim.Context(within(s.t))
	defer cancel()
	msg := message.NewMessage("1", []byte(payload))
	msg.SetContext(ctx)
	_, err := s.charger.Handle(msg)
	s.discreet(err)
	return err
}

func (s *till) count(query string, args ...any) (n int) {
	s.t.Helper()
	must(s.t, s.database.DB.QueryRow(query, args...).Scan(&n))
	return n
}

func TestAChargeIsSettledWithItsReceiptAndRows(t *testing.T) {
	t.Parallel()
	s := newTill(t)
	claim := s.claim("order-7")
	must(t, s.attempt(claim, payload))
	must(t, claim.Settle(within(t), nil, nil))
	var result []byte
	must(t, s.database.DB.QueryRow(`SELECT result FROM oncemill.claims WHERE key = 'order-7'`).Scan(&result))
	var receipt payment.Receipt
	must(t, json.Unmarshal(result, &receipt))
	entry := s.server.Ledger()[0]
	if want := (payment.Receipt{ID: entry.ID, Kind: "charge", Status: "succeeded", Amount: 1050, Currency: "usd"}); receipt != want {
		t.Errorf("the result is %s, want %+v", result, want)
	}
	if entry.Key != claim.ProviderKey() || entry.Metadata[payment.MetadataConsumer] != "payments" || entry.Metadata[payment.MetadataMessage] != "order-7" {
		t.Errorf("got %+v", entry)
	}
	if n := s.count(`SELECT count(*) FROM paid WHERE key = 'order-7' AND id = $1`, entry.ID); n != 1 {
		t.Errorf("%d rows were written", n)
	}
}

// The first attempt has paid and its reply was lost. What the second one is told
// before Stripe has looked for the key must not end the claim.
func TestASecondAttemptBelievesOnlyWhatHoldsForTheKey(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fault   stripeserver.Fault
		payload string
		verdict oncemill.Verdict
	}{
		"rate limit":            {stripeserver.RateLimit, payload, unknown},
		"forbidden":             {stripeserver.Forbidden, payload, unknown},
		"another amount":        {stripeserver.None, `{"amount": 1, "currency": "usd", "payment_method": "pm_card_visa"}`, unknown},
		"a deployment's mess":   {stripeserver.None, `{"amount": 1050, "currency": "usd"}`, unknown},
		"no longer JSON":        {stripeserver.None, `?`, unknown},
		"the replayed success":  {stripeserver.None, payload, happened},
		"not to be reached any": {stripeserver.Unavailable, payload, unknown},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newTill(t)
			s.faults(stripeserver.CutAfter, c.fault)
			first := s.claim("order-7")
			err := s.attempt(first, payload)
			wantVerdict(t, err, unknown)
			must(t, first.Doubt(within(t), err.Error(), nil))
			second := s.claim("order-7")
			if second.Attempt() != 2 {
				t.Fatalf("it is attempt %d", second.Attempt())
			}
			wantVerdict(t, s.attempt(second, c.payload), c.verdict)
			s.wantLedger(1)
		})
	}
}

// A card that was declined stays declined, whoever asks.
func TestASecondAttemptBelievesADecline(t *testing.T) {
	t.Parallel()
	s := newTill(t)
	s.faults(stripeserver.CutAfter)
	const declined = `{"amount": 1050, "currency": "usd", "payment_method": "pm_card_chargeDeclined"}`
	first := s.claim("order-7")
	err := s.attempt(first, declined)
	wantVerdict(t, err, unknown)
	must(t, first.Doubt(within(t), err.Error(), nil))
	wantVerdict(t, s.attempt(s.claim("order-7"), declined), never)
	s.wantLedger(0)
}

func TestAClaimThatEndsEndsTheRequest(t *testing.T) {
	t.Parallel()
	s := newTill(t)
	s.faults(stripeserver.HangAfter)
	claim, err := s.consumer.Claim(within(t), "order-7", oncemill.ClaimOptions{Lease: 500 * time.Millisecond})
	must(t, err)
	wantVerdict(t, s.attempt(claim, payload), unknown)
	if late := time.Since(claim.Deadline()); late < 0 || late > 5*time.Second {
		t.Errorf("ended %v after the claim", late)
	}
	s.charger.Timeout = 50 * time.Millisecond
	s.server.SetFaults(func(stripeserver.Call) stripeserver.Fault { return stripeserver.HangBefore })
	begin := time.Now()
	wantVerdict(t, s.attempt(s.claim("order-8"), payload), unknown)
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}

// Stripe has made the payment and answered 500, as it will again. Asking tells.
func TestAskFindsThePaymentBehindA500(t *testing.T) {
	t.Parallel()
	s := newTill(t)
	s.faults(stripeserver.ErrorAfter)
	claim := s.claim("order-7")
	err := s.attempt(claim, payload)
	wantVerdict(t, err, unknown)
	must(t, claim.Doubt(within(t), err.Error(), nil))
	doubts, err := s.inbox.InDoubt(within(t), "payments", oncemill.InDoubt{}, 2)
	must(t, err)
	resolution, err := s.charger.Ask(within(t), doubts[0])
	must(t, err)
	if resolution.Verdict != happened || resolution.Note != s.server.Ledger()[0].ID+" is succeeded" {
		t.Errorf("got %+v", resolution)
	}
	must(t, s.consumer.ResolveWith(within(t), "order-7", doubts[0].Token, resolution))
	if n := s.count(`SELECT count(*) FROM oncemill.claims WHERE outcome = 'settled' AND convert_from(result, 'UTF8')::json->>'id' = $1`, s.server.Ledger()[0].ID); n != 1 {
		t.Errorf("%d claims are settled with the receipt", n)
	}
	if n := s.count(`SELECT count(*) FROM paid`); n != 1 {
		t.Errorf("%d rows were written", n)
	}
}

func TestAskSaysWhatStripeHasNot(t *testing.T) {
	t.Parallel()
	s := newTill(t)
	s.faults(stripeserver.CutBefore)
	claim := s.claim("order-7")
	wantVerdict(t, s.attempt(claim, payload), unknown)
	must(t, claim.Doubt(within(t), "cut", nil))
	doubts, err := s.inbox.InDoubt(within(t), "payments", oncemill.InDoubt{}, 2)
	must(t, err)
	resolution, err := s.charger.Ask(within(t), doubts[0])
	must(t, err)
	if resolution.Verdict != notHappened || resolution.Note == "" {
		t.Errorf("got %+v", resolution)
	}
	s.server.SetFaults(func(stripeserver.Call) stripeserver.Fault { return stripeserver.Unavailable })
	resolution, err = s.charger.Ask(within(t), doubts[0])
	if err == nil || resolution.Verdict != unknown {
		t.Errorf("got %+v, %v while Stripe is away", resolution, err)
	}
}

func TestADecodeThatFailsSendsNothing(t *testing.T) {
	t.Parallel()
	s := newTill(t)
	s.charger.Decode = func(*message.Message) (payment.Request, error) {
		return payment.Request{}, fmt.Errorf("the price list is away")
	}
	wantVerdict(t, s.attempt(s.claim("order-7"), payload), notHappened)
	if n := len(s.server.Calls()); n != 0 {
		t.Errorf("%d requests were sent", n)
	}
}
