package payment_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/oncemill/oncemill/consumers/payment"
	"github.com/oncemill/oncemill/testcontainers/stripeserver"
)

func TestNothingFoundDidNotHappen(t *testing.T) {
	t.Parallel()
	s := newShop(t, stripeserver.Options{})
	_, err := s.pay("another", order)
	must(t, err)
	_, err = s.find(key, &order)
	wantVerdict(t, err, notHappened)
	if !errors.Is(err, payment.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
}

func TestAPaymentIsFoundOnTheLastPage(t *testing.T) {
	t.Parallel()
	s := newShop(t, stripeserver.Options{})
	receipt, err := s.pay(key, order)
	must(t, err)
	for i := range 250 {
		_, err := s.pay(fmt.Sprint("another", i), order)
		must(t, err)
	}
	found, err := s.find(key, &order)
	must(t, err)
	if found != receipt {
		t.Errorf("found %+v, want %+v", found, receipt)
	}
	if n := len(s.server.Calls()); n != 251+3 {
		t.Errorf("%d requests, want three pages", n-251)
	}
	s.MostPages = 2
	_, err = s.find(key, &order)
	wantVerdict(t, err, unknown)
	if err == nil || !strings.Contains(err.Error(), "MostPages") {
		t.Errorf("got %v", err)
	}
}

func TestAPaymentThatListsDoNotShowYet(t *testing.T) {
	t.Parallel()
	s := newShop(t, stripeserver.Options{VisibleAfter: time.Minute})
	s.faults(stripeserver.ErrorAfter)
	_, err := s.pay(key, order)
	wantVerdict(t, err, unknown)
	_, err = s.find(key, &order)
	wantVerdict(t, err, notHappened) // which is why the Resolver waits for the landing bound
	s.clock.advance(2 * time.Minute)
	_, err = s.find(key, &order)
	must(t, err)
}

func TestAPaymentIsFoundByItsKeyAlone(t *testing.T) {
	t.Parallel()
	s := newShop(t, stripeserver.Options{})
	paid, err := s.pay(key, order)
	must(t, err)
	refunded, err := s.pay("refund", payment.Request{Kind: payment.Refund, Payment: paid.ID, Amount: 50, Currency: "usd"})
	must(t, err)
	for key, want := range map[string]payment.Receipt{key: paid, "refund": refunded} {
		found, err := s.find(key, nil)
		must(t, err)
		if found != want {
			t.Errorf("found %+v, want %+v", found, want)
		}
	}
}

func TestAPaymentOfAnotherTimeIsNotFound(t *testing.T) {
	t.Parallel()
	s := newShop(t, stripeserver.Options{})
	_, err := s.pay(key, order)
	must(t, err)
	customers := order
	customers.Customer = "cus_1"
	_, err = s.pay("customers", customers)
	must(t, err)
	s.clock.advance(3 * time.Hour)
	_, err = s.find(key, &order)
	wantVerdict(t, err, notHappened)
	// Among those of a customer it is looked for a day longer.
	_, err = s.find("customers", &customers)
	must(t, err)
	s.clock.advance(24 * time.Hour)
	_, err = s.find("customers", &customers)
	wantVerdict(t, err, notHappened)
}

func TestASearchWithoutBoundsIsRefused(t *testing.T) {
	t.Parallel()
	s := newShop(t, stripeserver.Options{})
	for _, search := range []payment.Search{
		{From: time.Now(), To: time.Now()}, {Key: key, To: time.Now()}, {Key: key, From: time.Now()},
		{Key: key, From: time.Now(), To: time.Now().Add(-time.Second)},
	} {
		_, err := s.Find(within(t), search)
		wantVerdict(t, err, unknown)
		if err == nil {
			t.Errorf("%+v is accepted", search)
		}
	}
}

// The customer narrows a search. A customer who is another one by now must not have
// the payment disappear.
func TestAPaymentOfAnotherCustomerIsFound(t *testing.T) {
	t.Parallel()
	s := newShop(t, stripeserver.Options{})
	r := order
	r.Customer = "cus_1"
	paid, err := s.pay(key, r)
	must(t, err)
	for i := range 120 {
		_, err := s.pay(fmt.Sprint("another", i), order)
		must(t, err)
	}
	before := len(s.server.Calls())
	found, err := s.find(key, &r)
	must(t, err)
	if pages := len(s.server.Calls()) - before; found != paid || pages != 1 {
		t.Errorf("found %+v on %d pages", found, pages)
	}
	r.Customer = "cus_2"
	found, err = s.find(key, &r)
	must(t, err)
	if found != paid {
		t.Errorf("found %+v", found)
	}
	s.Narrow = true
	_, err = s.find(key, &r)
	wantVerdict(t, err, notHappened)
	r.Customer = "" // nothing to narrow by
	_, err = s.find(key, &r)
	must(t, err)
}

// Of several under one key, which takes a forgotten key, one that was paid counts.
func TestThePaidOneOfTwoIsFound(t *testing.T) {
	t.Parallel()
	s := newShop(t, stripeserver.Options{KeyLifetime: time.Minute})
	paid, err := s.pay(key, order)
	must(t, err)
	s.clock.advance(2 * time.Minute)
	declined := order
	declined.PaymentMethod = "pm_card_chargeDeclined"
	_, err = s.pay(key, declined)
	wantVerdict(t, err, never)
	found, err := s.find(key, &order)
	must(t, err)
	if found != paid {
		t.Errorf("found %+v, want %+v", found, paid)
	}
}

func TestFindEndsWithItsContext(t *testing.T) {
	t.Parallel()
	s := newShop(t, stripeserver.Options{})
	asked := make(chan struct{}, 1)
	s.server.SetFaults(func(stripeserver.Call) stripeserver.Fault {
		asked <- struct{}{}
		return stripeserver.HangBefore
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		cancel()
	}()
	_, err := s.Find(ctx, payment.Search{Key: key, From: time.Now().Add(-time.Hour), To: time.Now()})
	wantVerdict(t, err, unknown)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestAFindThatFailsIsUnknown(t *testing.T) {
	t.Parallel()
	for _, fault := range []stripeserver.Fault{stripeserver.Forbidden, stripeserver.RateLimit, stripeserver.Unavailable, stripeserver.CutBefore, stripeserver.Garbled} {
		s := newShop(t, stripeserver.Options{Faults: func(stripeserver.Call) stripeserver.Fault { return fault }})
		_, err := s.find(key, &order)
		wantVerdict(t, err, unknown)
		if err == nil {
			t.Errorf("%s is an answer", fault)
		}
	}
}

func TestRefunds(t *testing.T) {
	t.Parallel()
	s := newShop(t, stripeserver.Options{})
	paid, err := s.pay(key, order)
	must(t, err)
	r := payment.Request{Kind: payment.Refund, Payment: paid.ID, Amount: 1000, Currency: "usd"}
	s.faults(stripeserver.CutAfter)
	_, err = s.pay("refund", r)
	wantVerdict(t, err, unknown)
	s.wantLedger(2)
	found, err := s.find("refund", &r)
	must(t, err)
	if want := (payment.Receipt{ID: found.ID, Kind: "refund", Status: "succeeded", Amount: 1000, Currency: "usd"}); found != want {
		t.Errorf("found %+v, want %+v", found, want)
	}
	again, err := s.pay("refund", r)
	must(t, err)
	if again != found {
		t.Errorf("got %+v, want %+v", again, found)
	}
	s.wantLedger(2)

	s.faults()
	_, err = s.pay("too much", r)
	wantVerdict(t, err, never)
	r.Payment, r.Amount = "pi_unheard_of", 1
	_, err = s.pay("of nothing", r)
	wantVerdict(t, err, never)
	_, err = s.find("of nothing", &r)
	wantVerdict(t, err, notHappened)
	s.wantLedger(2)
}

func TestARefundOfACharge(t *testing.T) {
	t.Parallel()
	s := newShop(t, stripeserver.Options{})
	_, err := s.pay(key, order)
	must(t, err)
	// The server counts its ids: the charge comes after its PaymentIntent.
	r := payment.Request{Kind: payment.Refund, Payment: fmt.Sprintf("ch_fake%018d", 2), Amount: 1050, Currency: "usd"}
	refunded, err := s.pay("refund", r)
	must(t, err)
	found, err := s.find("refund", &r)
	must(t, err)
	if found != refunded {
		t.Errorf("found %+v, want %+v", found, refunded)
	}
}
