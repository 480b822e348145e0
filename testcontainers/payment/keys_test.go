package payment_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/payment"
	"github.com/oncemill/oncemill/testcontainers/stripeserver"
)

// A second payment under a key that Stripe has forgotten is what StripeKeyLifetime is
// there to prevent.
func TestAKeyIsForgottenAfterADay(t *testing.T) {
	t.Parallel()
	s := newShop(t, stripeserver.Options{})
	first, err := s.pay(key, order)
	must(t, err)
	s.clock.advance(23*time.Hour + 59*time.Minute)
	again, err := s.pay(key, order)
	must(t, err)
	if again != first {
		t.Errorf("got %+v, and %+v before", again, first)
	}
	s.wantLedger(1)
	s.clock.advance(2 * time.Minute)
	again, err = s.pay(key, order)
	must(t, err)
	if again.ID == first.ID {
		t.Errorf("got %+v, want another payment", again)
	}
	s.wantLedger(2)
}

// net/http sends a request with an Idempotency-Key again when a connection breaks
// that was used before. The first part shows it, the second that ours is not.
func TestAReusedConnectionThatBreaksSendsOnce(t *testing.T) {
	t.Parallel()
	s := newShop(t, stripeserver.Options{})
	client := &http.Client{Transport: http.DefaultTransport.(*http.Transport).Clone()}
	t.Cleanup(client.CloseIdleConnections)
	plain := func(key string) error {
		body := strings.NewReader("amount=1050&currency=usd&confirm=true&payment_method=pm_card_visa")
		r, err := http.NewRequestWithContext(within(t), http.MethodPost, s.server.URL()+"/v1/payment_intents", body)
		must(t, err)
		r.Header.Set("Authorization", "Bearer "+stripeserver.DefaultAPIKey)
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Idempotency-Key", key)
		resp, err := client.Do(r)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	must(t, plain("first"))
	s.faults(stripeserver.CutAfter)
	must(t, plain("second"))
	if n := s.requests("second"); n != 2 {
		t.Errorf("net/http has sent it %d times: what this test guards against is gone", n)
	}

	s.faults()
	_, err := s.pay("third", order)
	must(t, err)
	s.faults(stripeserver.CutAfter)
	_, err = s.pay("fourth", order)
	wantVerdict(t, err, unknown)
	if n := s.requests("fourth"); n != 1 {
		t.Errorf("sent %d times in one attempt", n)
	}
	s.wantLedger(4)
	s.faults()
	_, err = s.pay("fourth", order)
	must(t, err)
	s.wantLedger(4)
}

func TestARequestUnderWayHasItsKeyInUse(t *testing.T) {
	t.Parallel()
	s := newShop(t, stripeserver.Options{Delay: 500 * time.Millisecond})
	s.faults(slices.Repeat([]stripeserver.Fault{stripeserver.SlowBefore}, 8)...) // whichever comes first
	var paid, inUse atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			_, err := s.pay(key, order)
			var answer *payment.StripeError
			switch {
			case err == nil:
				paid.Add(1)
			case errors.As(err, &answer) && answer.Status == http.StatusConflict:
				inUse.Add(1)
				wantVerdict(t, err, unknown)
			default:
				t.Errorf("got %v", err)
			}
		})
	}
	all.Wait()
	if paid.Load() == 0 || inUse.Load() == 0 {
		t.Errorf("%d were paid and %d told that the key is in use", paid.Load(), inUse.Load())
	}
	_, err := s.pay(key, order)
	must(t, err)
	s.wantLedger(1)
}

// Many payments over bad lines, each tried again with its key until it is known, by
// several processes at a time as far as Stripe can tell.
func TestPaymentsOverBadLinesAreMadeOnce(t *testing.T) {
	t.Parallel()
	const payments, tries = 150, 40
	faults := stripeserver.Random{Seed: 7, Rates: map[stripeserver.Fault]float64{
		stripeserver.CutBefore: 0.1, stripeserver.CutAfter: 0.2, stripeserver.Gateway: 0.1, stripeserver.Unavailable: 0.1,
		stripeserver.RateLimit: 0.1, stripeserver.LockTimeout: 0.05, stripeserver.Garbled: 0.05,
	}}
	s := newShop(t, stripeserver.Options{Faults: faults.Choose})
	var unclear atomic.Int64
	var all sync.WaitGroup
	for i := range payments {
		for range 2 {
			all.Go(func() {
				key := fmt.Sprintf("om-%d", i)
				for range tries {
					_, err := s.pay(key, order)
					switch oncemill.VerdictOf(err) {
					case happened:
						return
					case never:
						t.Errorf("%s: %v", key, err)
						return
					case unknown:
						unclear.Add(1)
					}
				}
				t.Errorf("%s is not paid", key)
			})
		}
	}
	all.Wait()
	twice := map[string]int{}
	for _, e := range s.server.Ledger() {
		if twice[e.Key]++; twice[e.Key] > 1 {
			t.Errorf("%s was paid twice", e.Key)
		}
	}
	if len(twice) != payments {
		t.Errorf("%d payments, want %d", len(twice), payments)
	}
	t.Logf("%d payments, %d requests, %d answers that told nothing", payments, len(s.server.Calls()), unclear.Load())
}
