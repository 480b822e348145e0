package payment_test

import (
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/payment"
	"github.com/oncemill/oncemill/testcontainers/stripeserver"
)

const (
	happened    = oncemill.Happened
	notHappened = oncemill.NotHappened
	never       = oncemill.Never
	unknown     = oncemill.Unknown
)

// Every answer that an attempt can get, what it means, what a second attempt with the
// same key gets, and what asking says then. paid is how many payments were made after
// the first and after the second attempt.
func TestWhatStripesAnswersMean(t *testing.T) {
	t.Parallel()
	const visa = "pm_card_visa"
	short := 300 * time.Millisecond
	for name, c := range map[string]struct {
		method       string
		fault        stripeserver.Fault
		limit        time.Duration
		first        oncemill.Verdict
		second       oncemill.Verdict
		asked        oncemill.Verdict
		paid, paid2  int
		says, status string
	}{
		"succeeded":                {method: visa, first: happened, second: happened, asked: happened, paid: 1, paid2: 1, status: "succeeded"},
		"processing":               {method: "pm_oncemill_processing", first: happened, second: happened, asked: happened, paid: 1, paid2: 1, status: "processing"},
		"declined":                 {method: "pm_card_chargeDeclined", first: never, second: never, asked: never, says: "HTTP 402 card_error card_declined generic_decline: Your card was declined."},
		"insufficient funds":       {method: "pm_card_visa_chargeDeclinedInsufficientFunds", first: never, second: never, asked: never, says: "insufficient_funds"},
		"expired card":             {method: "pm_card_chargeDeclinedExpiredCard", first: never, second: never, asked: never, says: "expired_card"},
		"authentication required":  {method: "pm_card_authenticationRequired", first: never, second: never, asked: never, says: "authentication_required"},
		"requires action":          {method: "pm_oncemill_requiresAction", first: never, second: never, asked: never, says: "it was canceled"},
		"action, not canceled":     {method: "pm_oncemill_requiresAction_cannotBeCanceled", first: unknown, second: unknown, asked: notHappened, says: "canceling it failed"},
		"action, paid meanwhile":   {method: "pm_oncemill_requiresAction_paidWhenCanceled", first: unknown, second: unknown, asked: happened, paid: 1, paid2: 1, says: "canceling it failed"},
		"requires capture":         {method: "pm_oncemill_requiresCapture", first: unknown, second: unknown, asked: unknown, says: "requires_capture"},
		"no such payment method":   {method: "pm_unheard_of", first: never, second: never, asked: notHappened, says: "HTTP 404 invalid_request_error resource_missing"},
		"500, nothing was made":    {method: visa, fault: stripeserver.ErrorBefore, first: unknown, second: unknown, asked: notHappened, says: "HTTP 500 api_error"},
		"500, it was made":         {method: visa, fault: stripeserver.ErrorAfter, first: unknown, second: unknown, asked: happened, paid: 1, paid2: 1},
		"500, half way":            {method: visa, fault: stripeserver.ErrorHalf, first: unknown, second: unknown, asked: notHappened},
		"502, it was made":         {method: visa, fault: stripeserver.Gateway, first: unknown, second: happened, asked: happened, paid: 1, paid2: 1, says: "HTTP 502 with something"},
		"503":                      {method: visa, fault: stripeserver.Unavailable, first: unknown, second: happened, asked: happened, paid2: 1},
		"429 rate limit":           {method: visa, fault: stripeserver.RateLimit, first: notHappened, second: happened, asked: happened, paid2: 1},
		"429 lock timeout":         {method: visa, fault: stripeserver.LockTimeout, first: unknown, second: happened, asked: happened, paid2: 1},
		"409 key in use":           {method: visa, fault: stripeserver.Conflict, first: unknown, second: happened, asked: happened, paid2: 1},
		"403":                      {method: visa, fault: stripeserver.Forbidden, first: notHappened, second: happened, asked: happened, paid2: 1},
		"cut before":               {method: visa, fault: stripeserver.CutBefore, first: unknown, second: happened, asked: happened, paid2: 1},
		"a lost reply":             {method: visa, fault: stripeserver.CutAfter, first: unknown, second: happened, asked: happened, paid: 1, paid2: 1},
		"half of a reply":          {method: visa, fault: stripeserver.Garbled, first: unknown, second: happened, asked: happened, paid: 1, paid2: 1, says: "HTTP 200 with something that is not an answer of Stripe's"},
		"half open, before":        {method: visa, fault: stripeserver.HangBefore, limit: short, first: unknown, second: happened, asked: happened, paid2: 1},
		"half open, after":         {method: visa, fault: stripeserver.HangAfter, limit: short, first: unknown, second: happened, asked: happened, paid: 1, paid2: 1, says: "deadline exceeded"},
		"too slow, and still made": {method: visa, fault: stripeserver.SlowAfter, limit: short, first: unknown, second: happened, asked: happened, paid: 1, paid2: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newShop(t, stripeserver.Options{Delay: 30 * time.Second})
			s.faults(c.fault)
			r := order
			r.PaymentMethod = c.method
			limit := 30 * time.Second
			if c.limit > 0 {
				limit = c.limit
			}
			receipt, err := s.within(limit, key, r)
			wantVerdict(t, err, c.first)
			if c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("got %v, want it to say %q", err, c.says)
			}
			if want := (payment.Receipt{ID: receipt.ID, Kind: "charge", Status: c.status, Amount: 1050, Currency: "usd"}); err == nil && (receipt != want || receipt.ID == "") {
				t.Errorf("got %+v, want %+v", receipt, want)
			}
			s.wantLedger(c.paid)
			again, err := s.pay(key, r)
			wantVerdict(t, err, c.second)
			if c.first == happened && again != receipt {
				t.Errorf("the second receipt is %+v, the first %+v", again, receipt)
			}
			s.wantLedger(c.paid2)
			found, err := s.find(key, &r)
			wantVerdict(t, err, c.asked)
			if c.second == happened && found != again {
				t.Errorf("found %+v, and was told %+v", found, again)
			}
			if n := s.requests(key); n != 2 {
				t.Errorf("%d requests were sent for two attempts", n)
			}
		})
	}
}

func TestAPaymentCarriesItsClaim(t *testing.T) {
	t.Parallel()
	s := newShop(t, stripeserver.Options{})
	r := order
	r.Customer, r.Description = "cus_7", "order 7"
	_, err := s.pay(key, r)
	must(t, err)
	entry := s.server.Ledger()[0]
	if entry.Key != key || entry.Metadata[payment.MetadataKey] != key || entry.Metadata["order"] != "7" || entry.Customer != "cus_7" || entry.Amount != 1050 {
		t.Errorf("got %+v", entry)
	}
}

func TestTheSameKeyForAnotherPaymentIsUnknown(t *testing.T) {
	t.Parallel()
	s := newShop(t, stripeserver.Options{})
	_, err := s.pay(key, order)
	must(t, err)
	r := order
	r.Amount = 2000
	_, err = s.pay(key, r)
	wantVerdict(t, err, unknown)
	var answer *payment.StripeError
	if !errors.As(err, &answer) || answer.Type != "idempotency_error" || answer.Status != http.StatusBadRequest {
		t.Errorf("got %v", err)
	}
	receipt, err := s.find(key, &r)
	must(t, err)
	if receipt.Amount != 1050 {
		t.Errorf("found %+v, want what was paid", receipt)
	}
	s.wantLedger(1)
}

func TestADeclineThatIsReplayedSaysSo(t *testing.T) {
	t.Parallel()
	s := newShop(t, stripeserver.Options{})
	r := order
	r.PaymentMethod = "pm_card_chargeDeclined"
	for _, replayed := range []bool{false, true} {
		_, err := s.pay(key, r)
		var answer *payment.StripeError
		if !errors.As(err, &answer) || answer.Replayed != replayed || answer.Code != "card_declined" || answer.RequestID == "" || !strings.HasPrefix(answer.Payment, "pi_") {
			t.Errorf("got %+v, want replayed %v", answer, replayed)
		}
	}
}

func TestAWrongAPIKeyMakesNoPayment(t *testing.T) {
	t.Parallel()
	s := newShop(t, stripeserver.Options{})
	wrong := &payment.Stripe{APIKey: "sk_test_somebody_elses", BaseURL: s.server.URL()}
	t.Cleanup(wrong.Close)
	_, err := wrong.Execute(within(t), key, order)
	wantVerdict(t, err, notHappened)
	// Stripe masks the key in its answer. This server does not.
	if strings.Contains(err.Error(), "somebody") || !strings.Contains(err.Error(), "HTTP 401") {
		t.Errorf("got %v", err)
	}
	charger := &payment.Charger{Provider: wrong}
	if err := charger.Check(within(t)); err == nil || strings.Contains(err.Error(), "somebody") || !strings.Contains(err.Error(), "HTTP 401") {
		t.Errorf("Check says %v", err)
	}
	charger.Provider = s.Stripe
	must(t, charger.Check(within(t)))
	s.wantLedger(0)
}

func TestNoConnectionIsNoPayment(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	must(t, listener.Close())
	s := &payment.Stripe{APIKey: "sk_test_1", BaseURL: "http://" + listener.Addr().String()}
	_, err = s.Execute(within(t), key, order)
	wantVerdict(t, err, notHappened)
	if !strings.Contains(err.Error(), "nothing was sent") {
		t.Errorf("got %v", err)
	}
}

// What stands between us and Stripe may answer with anything. It is not Stripe's word,
// neither that a payment was made nor that there is none.
func TestAnAnswerThatIsNotStripesIsUnknown(t *testing.T) {
	t.Parallel()
	const ours = `"metadata": {"` + payment.MetadataKey + `": "` + key + `"}`
	for name, answer := range map[string]struct {
		status int
		body   string
	}{
		"a proxy's 401":             {401, `<html>who are you</html>`},
		"a proxy's 403":             {403, `<html>no</html>`},
		"a proxy's 407":             {407, `{"error": {"message": "no"}}`},
		"a proxy's 403, as JSON":    {403, `{"error": {"message": "no"}}`},
		"a proxy's 429":             {429, `{"error": "slow down"}`},
		"another 429":               {429, `{"error": {"type": "invalid_request_error", "message": "slow down"}}`},
		"a 400 without type":        {400, `{"error": {"message": "no"}}`},
		"a 404 of the wrong place":  {404, `{"error": {"type": "invalid_request_error", "message": "Unrecognized request URL"}}`},
		"a 424":                     {424, `{"error": {"type": "api_error", "message": "a dependency failed"}}`},
		"a 402 that is no card's":   {402, `{"error": {"type": "api_error", "message": "?"}}`},
		"a 500 with a card error":   {500, `{"error": {"type": "card_error", "code": "card_declined", "message": "?"}}`},
		"a redirect":                {307, `{}`},
		"a redirect with a list":    {302, `{"object": "list", "data": [], "has_more": false}`},
		"nothing":                   {200, ``},
		"an empty object":           {200, `{}`},
		"null":                      {200, `null`},
		"half of a list":            {200, `{"object": "list", "data": []}`},
		"a list without end":        {200, `{"object": "list", "data": [], "has_more": true}`},
		"a list of nothing":         {200, `{"object": "list", "data": null, "has_more": false}`},
		"another object":            {200, `{"id": "cus_1", "object": "customer", "status": "succeeded", ` + ours + `}`},
		"somebody else's payment":   {200, `{"id": "pi_1", "object": "payment_intent", "status": "succeeded"}`},
		"no id":                     {200, `{"object": "payment_intent", "status": "succeeded", ` + ours + `}`},
		"an unheard of status":      {200, `{"id": "pi_1", "object": "payment_intent", "status": "requires_patience", ` + ours + `}`},
		"an empty error":            {400, `{"error": null}`},
		"JSON of another shape":     {400, `[1]`},
		"idempotency without a 400": {422, `{"error": {"type": "idempotency_error", "message": "?"}}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var sent atomic.Int32
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				sent.Add(1)
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(answer.status)
				_, _ = w.Write([]byte(answer.body))
			}))
			t.Cleanup(server.Close)
			s := &payment.Stripe{APIKey: "sk_test_1", BaseURL: server.URL}
			t.Cleanup(s.Close)
			refund := payment.Request{Kind: payment.Refund, Payment: "pi_1", Amount: 1, Currency: "usd"}
			for _, r := range []payment.Request{order, refund} {
				_, err := s.Execute(within(t), key, r)
				wantVerdict(t, err, unknown)
				_, found := s.Find(within(t), payment.Search{Key: key, Request: &r, From: time.Now(), To: time.Now()})
				wantVerdict(t, found, unknown)
				if err == nil || found == nil {
					t.Errorf("it is an answer: %v, %v", err, found)
				}
			}
			if err := s.Check(within(t)); err == nil {
				t.Error("Check is content")
			}
			if n := sent.Load(); n != 5 {
				t.Errorf("5 requests were sent %d times", n)
			}
		})
	}
}

// Codes that are about our account, and not about the payment.
func TestOurOwnFaultIsNotThePayments(t *testing.T) {
	t.Parallel()
	for _, code := range []string{"testmode_charges_only", "livemode_mismatch", "api_key_expired", "secret_key_required", "account_invalid"} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write([]byte(`{"error": {"type": "invalid_request_error", "code": "` + code + `", "message": "?"}}`))
		}))
		s := &payment.Stripe{APIKey: "sk_test_1", BaseURL: server.URL}
		_, err := s.Execute(within(t), key, order)
		wantVerdict(t, err, notHappened)
		s.Close()
		server.Close()
	}
}

func TestAServerThatOnlyListensIsUnknown(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts, nobody reads
	must(t, err)
	t.Cleanup(func() { listener.Close() })
	s := &payment.Stripe{APIKey: "sk_test_1", BaseURL: "http://" + listener.Addr().String()}
	t.Cleanup(s.Close)
	begin := time.Now()
	_, err = (&shop{Stripe: s, t: t}).within(200*time.Millisecond, key, order)
	wantVerdict(t, err, unknown)
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestRequestsAreInTheNameOfTheAccount(t *testing.T) {
	t.Parallel()
	accounts := make(chan string, 10)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		accounts <- r.Method + " " + r.Header.Get("Stripe-Account")
		_, _ = w.Write([]byte(`{"object": "list", "data": [], "has_more": false}`))
	}))
	t.Cleanup(server.Close)
	s := &payment.Stripe{APIKey: "sk_test_1", BaseURL: server.URL, Account: "acct_1"}
	t.Cleanup(s.Close)
	must(t, s.Check(within(t)))
	_, err := s.Execute(within(t), key, order)
	wantVerdict(t, err, unknown)
	_, err = s.Execute(within(t), key, payment.Request{Kind: payment.Refund, Payment: "pi_1", Amount: 1, Currency: "usd"})
	wantVerdict(t, err, unknown)
	_, err = s.Find(within(t), payment.Search{Key: key, From: time.Now(), To: time.Now()})
	wantVerdict(t, err, notHappened)
	for range 5 {
		if got := <-accounts; !strings.HasSuffix(got, " acct_1") {
			t.Errorf("got %s", got)
		}
	}
}
