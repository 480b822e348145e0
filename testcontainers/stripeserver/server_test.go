package stripeserver_test

import (
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/oncemill/oncemill/testcontainers/stripeserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, o stripeserver.Options) *stripeserver.Server {
	t.Helper()
	s, err := stripeserver.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}

// send sends a request with the right API key, and returns its answer.
func send(t *testing.T, method, address, key, form string) (status int, body string, header http.Header) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(form))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+stripeserver.DefaultAPIKey)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	resp, err := client.Do(r)
	if err != nil {
		return 0, err.Error(), nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text), resp.Header
}

const visa = "amount=1050&currency=usd&confirm=true&payment_method=pm_card_visa"

func TestRequestsAreRefusedForWhatStripeHasNot(t *testing.T) {
	t.Parallel()
	s := start(t, stripeserver.Options{})
	for form, status := range map[string]int{
		visa + "&nonsense=1":                                    400,
		visa + "&metadata=7":                                    400,
		visa + "&amount=1":                                      400,
		visa + "&description=":                                  400,
		"currency=usd":                                          400,
		"amount=1050":                                           400,
		"amount=0&currency=usd":                                 400,
		"amount=10.5&currency=usd":                              400,
		"amount=1050&currency=USD":                              400,
		"amount=1050&currency=usd&confirm=true":                 400,
		"amount=1000000000000&currency=usd":                     400,
		"amount=1050&currency=usd&payment_method=x":             404,
		visa + "&metadata[" + strings.Repeat("n", 41) + "]=1":   400,
		visa + "&metadata[a]=" + strings.Repeat("v", 501):       400,
		visa + "&metadata[a]=1&customer=cus_1&off_session=true": 200,
		visa + "&%zz=1":                                         400,
	} {
		if got, body, _ := send(t, "POST", s.URL()+"/v1/payment_intents", "", form); got != status {
			t.Errorf("%s: HTTP %d, want %d: %s", form, got, status, body)
		}
	}
	for path, status := range map[string]int{
		"/v1/payment_intents?limit=100":                 200,
		"/v1/payment_intents?limit=101":                 400,
		"/v1/payment_intents?limit=x":                   400,
		"/v1/payment_intents?created[gte]=x":            400,
		"/v1/payment_intents?starting_after=pi_unknown": 404,
		"/v1/payment_intents?email=a":                   400,
		"/v1/payment_intents/search?query=a":            404,
		"/v1/refunds":                                   200,
		"/v1/customers":                                 404,
	} {
		if got, body, _ := send(t, "GET", s.URL()+path, "", ""); got != status {
			t.Errorf("%s: HTTP %d, want %d: %s", path, got, status, body)
		}
	}
	if n := len(s.Ledger()); n != 1 {
		t.Errorf("the ledger has %d entries, want 1", n)
	}
}

func TestTheLedgersFileCanBeReadMeanwhile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "ledger.jsonl")
	s := start(t, stripeserver.Options{Ledger: path})
	form := visa + "&metadata[" + url.QueryEscape("order") + "]=7&customer=cus_1"
	for _, key := range []string{"a", "a", "b"} {
		send(t, "POST", s.URL()+"/v1/payment_intents", key, form)
	}
	file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteString(`{"at": "20`); err != nil { // being written
		t.Fatal(err)
	}
	file.Close()
	entries, err := stripeserver.ReadLedger(path)
	if err != nil || len(entries) != 2 {
		t.Fatalf("got %+v, %v", entries, err)
	}
	for i, want := range s.Ledger() {
		got := entries[i]
		if !got.At.Equal(want.At) || got.ID != want.ID || got.Key != want.Key || got.Kind != "charge" || got.Amount != 1050 ||
			got.Currency != "usd" || got.Customer != "cus_1" || got.Metadata["order"] != "7" {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	if _, err := stripeserver.ReadLedger(path + "x"); err == nil {
		t.Error("a file that is not there is read")
	}
}

func TestAStoredAnswerIsReplayed(t *testing.T) {
	t.Parallel()
	s := start(t, stripeserver.Options{Faults: func(c stripeserver.Call) stripeserver.Fault {
		if c.Key == "500" && c.Nth == 1 {
			return stripeserver.ErrorAfter
		}
		return stripeserver.None
	}})
	for key, form := range map[string]string{"200": visa, "402": strings.Replace(visa, "pm_card_visa", "pm_card_chargeDeclined", 1), "500": visa} {
		status, body, header := send(t, "POST", s.URL()+"/v1/payment_intents", key, form)
		again, bodyAgain, headerAgain := send(t, "POST", s.URL()+"/v1/payment_intents", key, form)
		if status != again || body != bodyAgain || header.Get("Idempotent-Replayed") != "" || headerAgain.Get("Idempotent-Replayed") != "true" {
			t.Errorf("%s: HTTP %d %s, then %d %s", key, status, body, again, bodyAgain)
		}
	}
	status, body, _ := send(t, "POST", s.URL()+"/v1/payment_intents", "200", visa+"&description=other")
	if status != 400 || !strings.Contains(body, "idempotency_error") {
		t.Errorf("HTTP %d %s", status, body)
	}
}

func TestCloseEndsWhatHangs(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{})
	s, err := stripeserver.Start(stripeserver.Options{Faults: func(stripeserver.Call) stripeserver.Fault {
		close(asked)
		return stripeserver.HangBefore
	}})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		send(t, "GET", s.URL()+"/v1/refunds", "", "")
	}()
	<-asked
	if err := s.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	<-ended
}

func TestAnAddressOrALedgerThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	s := start(t, stripeserver.Options{})
	for _, o := range []stripeserver.Options{
		{Addr: strings.TrimPrefix(s.URL(), "http://")},
		{Ledger: filepath.Join(t.TempDir(), "no", "such", "directory")},
	} {
		if _, err := stripeserver.Start(o); err == nil || !strings.HasPrefix(err.Error(), "stripeserver: ") {
			t.Errorf("%+v: got %v", o, err)
		}
	}
}

func TestRandomFaultsRepeat(t *testing.T) {
	t.Parallel()
	r := stripeserver.Random{Seed: 1, Rates: map[stripeserver.Fault]float64{stripeserver.CutAfter: 0.5, stripeserver.CutBefore: 0.5}}
	differ := 0
	for n := range 100 {
		c := stripeserver.Call{Key: "k", Path: "/v1/refunds", Nth: n}
		first := r.Choose(c)
		if first == stripeserver.None || r.Choose(c) != first {
			t.Errorf("%d: %q", n, first)
		}
		if (stripeserver.Random{Seed: 2, Rates: r.Rates}).Choose(c) != first {
			differ++
		}
	}
	if differ < 20 || differ > 80 {
		t.Errorf("another seed differs in %d of 100", differ)
	}
	if f := r.Choose(stripeserver.Call{Nth: 1}); f != stripeserver.None {
		t.Errorf("a request without key gets %q", f)
	}
}
