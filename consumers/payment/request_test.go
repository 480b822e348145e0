package payment_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"go.uber.org/goleak"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/payment"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func decode(payload string) (payment.Request, error) {
	return payment.DecodeJSON(message.NewMessage("1", []byte(payload)))
}

func TestARequestIsDecoded(t *testing.T) {
	t.Parallel()
	r, err := decode(`{"kind": "refund", "amount": 1050, "currency": "USD", "customer": "cus_1", "payment_method": "pm_1",
		"payment": "pi_1", "description": "Büro", "metadata": {"order": "7", "by": "me"}}`)
	if err != nil {
		t.Fatal(err)
	}
	if r.Kind != payment.Refund || r.Amount != 1050 || r.Currency != "USD" || r.Customer != "cus_1" || r.PaymentMethod != "pm_1" ||
		r.Payment != "pi_1" || r.Description != "Büro" || len(r.Metadata) != 2 || r.Metadata["order"] != "7" {
		t.Errorf("got %+v", r)
	}
}

func TestAPayloadThatIsWrongNamesTheField(t *testing.T) {
	t.Parallel()
	for payload, field := range map[string]string{
		``:                                 "payload",
		`null`:                             "payload",
		`[]`:                               "payload",
		`"amount"`:                         "payload",
		`{"amount": 1`:                     "payload",
		`{"amount": 1} {}`:                 "payload",
		`{"amount": 1}x`:                   "payload",
		`{"amount" 1}`:                     "payload",
		"{\"currency\": \"\xff":            "payload",
		`{"amount": 10.50}`:                "amount",
		`{"amount": 1e3}`:                  "amount",
		`{"amount": "100"}`:                "amount",
		`{"amount": null}`:                 "amount",
		`{"amount": [1]}`:                  "amount",
		`{"amount": 9223372036854775808}`:  "amount",
		`{"amount": -9223372036854775809}`: "amount",
		`{"amount": 100000000000000000000000000000000}`:   "amount",
		`{"amount": 1, "amount": 100}`:                    `"amount"`,
		`{"Amount": 100}`:                                 `"Amount"`,
		`{"amont": 100}`:                                  `"amont"`,
		`{"currency": 5}`:                                 "currency",
		`{"currency": null}`:                              "currency",
		`{"payment_method": {"id": "pm_1"}}`:              "payment_method",
		`{"metadata": "order"}`:                           "metadata",
		`{"metadata": {"order": 7}}`:                      "metadata.order",
		`{"metadata": {"order": "7", "order": "8"}}`:      "metadata",
		`{"metadata": {"order": {"a": {"b": ["deep"]}}}}`: "metadata.order",
	} {
		_, err := decode(payload)
		var wrong *payment.InputError
		if !errors.As(err, &wrong) || wrong.Field != field {
			t.Errorf("%s: got %v, want an InputError about %s", payload, err, field)
			continue
		}
		if oncemill.VerdictOf(err) != oncemill.Never || !strings.HasPrefix(err.Error(), "payment: "+field+" ") {
			t.Errorf("%s: got %q of verdict %q", payload, err, oncemill.VerdictOf(err))
		}
	}
}

func FuzzDecodeJSON(f *testing.F) {
	f.Add([]byte(`{"kind": "refund", "amount": 1050, "currency": "USD", "metadata": {"order": "7"}}`))
	f.Add([]byte(`{"amount": 1e3}`))
	f.Add([]byte(`{"amount": 00`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		_, err := payment.DecodeJSON(message.NewMessage("1", payload))
		if err != nil && oncemill.VerdictOf(err) != oncemill.Never {
			t.Errorf("got %v of verdict %q", err, oncemill.VerdictOf(err))
		}
	})
}

// unreachable is a Stripe that fails the test if anything is sent to it.
func unreachable(t *testing.T) *payment.Stripe {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("%s %s was sent", r.Method, r.URL.Path)
	}))
	t.Cleanup(server.Close)
	s := &payment.Stripe{APIKey: "sk_test_oncemill", BaseURL: server.URL}
	t.Cleanup(s.Close)
	return s
}

func TestARequestThatIsWrongIsNotSent(t *testing.T) {
	t.Parallel()
	charge := payment.Request{Amount: 1050, Currency: "usd", PaymentMethod: "pm_card_visa"}
	refund := payment.Request{Kind: payment.Refund, Amount: 1050, Currency: "usd", Payment: "pi_1"}
	long := strings.Repeat("x", 501)
	many := map[string]string{}
	for i := range 48 {
		many[long[:i+1][:min(i+1, 40)]+string(rune('a'+i%26))+string(rune('a'+i/26))] = "1"
	}
	for name, c := range map[string]struct {
		field  string
		base   payment.Request
		change func(r *payment.Request)
	}{
		"zero":                 {"amount", charge, func(r *payment.Request) { r.Amount = 0 }},
		"negative":             {"amount", charge, func(r *payment.Request) { r.Amount = -1050 }},
		"too large":            {"amount", charge, func(r *payment.Request) { r.Amount = 100_000_000 }},
		"largest int64":        {"amount", charge, func(r *payment.Request) { r.Amount = 1<<63 - 1 }},
		"smallest int64":       {"amount", charge, func(r *payment.Request) { r.Amount = -1 << 63 }},
		"too large in IDR":     {"amount", charge, func(r *payment.Request) { r.Currency, r.Amount = "idr", 1_000_000_000_000 }},
		"a fils in KWD":        {"amount", charge, func(r *payment.Request) { r.Currency, r.Amount = "kwd", 5121 }},
		"a cent in ISK":        {"amount", charge, func(r *payment.Request) { r.Currency, r.Amount = "isk", 501 }},
		"no currency":          {"currency", charge, func(r *payment.Request) { r.Currency = "" }},
		"no such currency":     {"currency", charge, func(r *payment.Request) { r.Currency = "xyz" }},
		"a blank currency":     {"currency", charge, func(r *payment.Request) { r.Currency = " us" }},
		"two currencies":       {"currency", charge, func(r *payment.Request) { r.Currency = "usd eur" }},
		"no payment method":    {"payment_method", charge, func(r *payment.Request) { r.PaymentMethod = "" }},
		"a method with a line": {"payment_method", charge, func(r *payment.Request) { r.PaymentMethod = "pm_1\nX-Evil: 1" }},
		"a long customer":      {"customer", charge, func(r *payment.Request) { r.Customer = long }},
		"a charge of a charge": {"payment", charge, func(r *payment.Request) { r.Payment = "pi_1" }},
		"no such kind":         {"kind", charge, func(r *payment.Request) { r.Kind = "buy" }},
		"refund of nothing":    {"payment", refund, func(r *payment.Request) { r.Payment = "" }},
		"refund of a customer": {"payment", refund, func(r *payment.Request) { r.Payment = "cus_1" }},
		"refund of zero":       {"amount", refund, func(r *payment.Request) { r.Amount = 0 }},
		"our metadata":         {"metadata", charge, func(r *payment.Request) { r.Metadata = map[string]string{"oncemill_key": "x"} }},
		"much metadata":        {"metadata", charge, func(r *payment.Request) { r.Metadata = many }},
		"a long name":          {"metadata", charge, func(r *payment.Request) { r.Metadata = map[string]string{long: "x"} }},
		"a name in brackets":   {"metadata", charge, func(r *payment.Request) { r.Metadata = map[string]string{"a][b": "x"} }},
		"a long value":         {"metadata.a", charge, func(r *payment.Request) { r.Metadata = map[string]string{"a": long} }},
		"an empty value":       {"metadata.a", charge, func(r *payment.Request) { r.Metadata = map[string]string{"a": ""} }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := c.base
			c.change(&r)
			_, err := unreachable(t).Execute(t.Context(), "om-1", r)
			var wrong *payment.InputError
			if !errors.As(err, &wrong) || wrong.Field != c.field || oncemill.VerdictOf(err) != oncemill.Never {
				t.Errorf("got %v (%q), want an InputError about %s", err, oncemill.VerdictOf(err), c.field)
			}
		})
	}
}

func TestWrongFieldsOfStripeAreFoundAtTheStart(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]*payment.Stripe{
		"APIKey is empty":              {},
		"APIKey is a publishable key":  {APIKey: "pk_test_1"},
		"APIKey has a blank":           {APIKey: "sk_test_1\n"},
		"BaseURL must be a URL":        {APIKey: "sk_test_1", BaseURL: "api.stripe.com"},
		"BaseURL must be a URL,":       {APIKey: "sk_test_1", BaseURL: "ftp://127.0.0.1"},
		"would travel in the clear":    {APIKey: "sk_live_1", BaseURL: "http://stripe.example"},
		"MostAmount is -1":             {APIKey: "sk_test_1", MostAmount: -1},
		"MostPages is -1":              {APIKey: "sk_test_1", MostPages: -1},
		"without a user":               {APIKey: "sk_test_1", BaseURL: "https://me:secret@127.0.0.1"},
		"must be a URL such as https:": {APIKey: "sk_test_1", BaseURL: "https://"},
	} {
		charger := payment.Charger{Provider: s}
		err := charger.Check(t.Context())
		if err == nil || !strings.Contains(err.Error(), strings.TrimSuffix(name, ",")) || strings.Contains(err.Error(), "secret@") {
			t.Errorf("got %v, want %s", err, name)
		}
		_, err = s.Execute(t.Context(), "om-1", payment.Request{Amount: 1, Currency: "usd", PaymentMethod: "pm_1"})
		if oncemill.VerdictOf(err) != oncemill.NotHappened {
			t.Errorf("%s: Execute says %v (%q)", name, err, oncemill.VerdictOf(err))
		}
	}
	if err := (&payment.Charger{}).Check(t.Context()); err == nil || !strings.Contains(err.Error(), "Charger.Provider is nil") {
		t.Errorf("got %v", err)
	}
	err := (&payment.Charger{Provider: unreachable(t), Timeout: -1}).Check(t.Context())
	if err == nil || !strings.Contains(err.Error(), "Charger.Timeout is -1ns") {
		t.Errorf("got %v", err)
	}
}

func TestACheckOfAnAddressWithoutAServerFails(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	s := &payment.Stripe{APIKey: "sk_test_1", BaseURL: "http://" + listener.Addr().String()}
	if err := (&payment.Charger{Provider: s}).Check(t.Context()); err == nil || !strings.Contains(err.Error(), "Stripe cannot be reached") {
		t.Errorf("got %v", err)
	}
}

func TestACheckSaysHowStripeFails(t *testing.T) {
	t.Parallel()
	for says, answer := range map[string]http.HandlerFunc{
		"Stripe does not accept us": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = w.Write([]byte(`{"error": {"type": "invalid_request_error", "message": "Invalid API Key"}}`))
		},
		"Stripe is in trouble":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
		"Stripe does not answer": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		server := httptest.NewServer(answer)
		s := &payment.Stripe{APIKey: "sk_test_1", BaseURL: server.URL}
		if err := s.Check(t.Context()); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want %s", err, says)
		}
		s.Close()
		server.Close()
	}
}

func TestAHandlerWithoutAClaimDoesNothing(t *testing.T) {
	t.Parallel()
	charger := &payment.Charger{Provider: unreachable(t)}
	msg := message.NewMessage("1", []byte(`{"amount": 1050, "currency": "usd", "payment_method": "pm_card_visa"}`))
	if _, err := charger.Handle(msg); !errors.Is(err, oncemill.ErrNoClaim) {
		t.Errorf("got %v, want ErrNoClaim", err)
	}
}

func TestDecimal(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		amount   int64
		currency string
		want     string
	}{
		{1050, "usd", "10.50"}, {1050, "USD", "10.50"}, {5, "eur", "0.05"}, {0, "eur", "0.00"}, {-5, "eur", "-0.05"}, {-1050, "eur", "-10.50"},
		{1050, "jpy", "1050"}, {-1, "jpy", "-1"}, {5120, "kwd", "5.120"}, {7, "kwd", "0.007"}, {500, "isk", "5.00"}, {100, "shares", "1.00"},
	} {
		if got := payment.Decimal(c.amount, c.currency); got != c.want {
			t.Errorf("%d %s: got %s, want %s", c.amount, c.currency, got, c.want)
		}
	}
}

func TestDescribeKeepsWhatAskWillNeed(t *testing.T) {
	t.Parallel()
	charger := &payment.Charger{Provider: unreachable(t)}
	var opts oncemill.ClaimOptions
	payload := `{"amount": 1050, "currency": "usd", "payment_method": "pm_card_visa"}`
	if err := charger.Describe(message.NewMessage("1", []byte(payload)), &opts); err != nil {
		t.Fatal(err)
	}
	if opts.Amount != "10.50" || opts.Currency != "USD" || string(opts.Payload) != payload {
		t.Errorf("got %+v", opts)
	}
	for _, payload := range []string{`{"amount": 0.5}`, `{"amount": 1, "currency": "\u0000\u0000\u0000"}`, `{"amount": 1, "currency": "` + strings.Repeat("x", 100) + `"}`} {
		opts = oncemill.ClaimOptions{}
		if err := charger.Describe(message.NewMessage("1", []byte(payload)), &opts); err != nil || opts.Amount != "" || opts.Currency != "" {
			t.Errorf("%s: got %+v, %v: it is for Handle to refuse", payload, opts, err)
		}
	}
}

// A provider that has nothing to do with Stripe.
type shop struct{ asked atomic.Int32 }

func (s *shop) Execute(context.Context, string, payment.Request) (payment.Receipt, error) {
	return payment.Receipt{ID: "1"}, nil
}

func (s *shop) Find(_ context.Context, search payment.Search) (payment.Receipt, error) {
	s.asked.Add(1)
	if search.Request != nil {
		return payment.Receipt{}, payment.Final(errors.New("refused"))
	}
	return payment.Receipt{}, oncemill.DidNotHappen(payment.ErrNotFound)
}

func TestAskWithoutAMessageAsksByTheKey(t *testing.T) {
	t.Parallel()
	charger := &payment.Charger{Provider: &shop{}}
	resolution, err := charger.Ask(t.Context(), oncemill.InDoubt{Consumer: "payments"})
	if err != nil || resolution.Verdict != oncemill.NotHappened || !strings.Contains(resolution.Note, "nothing under this key") {
		t.Errorf("got %+v, %v", resolution, err)
	}
	resolution, err = charger.Ask(t.Context(), oncemill.InDoubt{Consumer: "payments", Payload: []byte(`{"amount": 1}`)})
	if err != nil || resolution.Verdict != oncemill.Never || resolution.Note != "refused" {
		t.Errorf("got %+v, %v", resolution, err)
	}
	resolution, err = charger.Ask(t.Context(), oncemill.InDoubt{Payload: []byte(`?`), Message: &oncemill.ParkedMessage{Payload: []byte(`{"amount": 1}`)}})
	if err != nil || resolution.Verdict != oncemill.Never {
		t.Errorf("got %+v, %v: the parked message comes before the payload", resolution, err)
	}
}
