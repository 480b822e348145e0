package brokerorders_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/payment"
	"github.com/oncemill/oncemill/examples/brokerorders"
)

const id = "om-0123456789abcdef0123456789abcdef01234567"

var buy = payment.Request{Kind: brokerorders.Buy, Amount: 45200, Currency: "usd",
	Metadata: map[string]string{brokerorders.Symbol: "AAPL", brokerorders.Quantity: "2"}}

func start(t *testing.T, o brokerorders.Options) (*brokerorders.Server, *brokerorders.Provider) {
	t.Helper()
	server, err := brokerorders.Start(o)
	must(t, err)
	client := &http.Client{Transport: http.DefaultTransport.(*http.Transport).Clone()}
	t.Cleanup(func() {
		client.CloseIdleConnections()
		must(t, server.Close())
	})
	return server, &brokerorders.Provider{URL: server.URL(), Token: brokerorders.DefaultToken, Client: client}
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantVerdict(t *testing.T, err error, want oncemill.Verdict) {
	t.Helper()
	if got := oncemill.VerdictOf(err); got != want {
		t.Errorf("got verdict %q of %v, want %q", got, err, want)
	}
}

// What each answer means, what asking says then, and how many orders were placed.
func TestWhatTheBrokersAnswersMean(t *testing.T) {
	t.Parallel()
	const happened, notHappened, never, unknown = oncemill.Happened, oncemill.NotHappened, oncemill.Never, oncemill.Unknown
	for fault, c := range map[brokerorders.Fault]struct {
		first, asked, second oncemill.Verdict
		placed               int
	}{
		brokerorders.None:             {happened, happened, happened, 1},
		brokerorders.Reject:           {never, notHappened, happened, 0},
		brokerorders.Insufficient:     {never, notHappened, happened, 0},
		brokerorders.Unavailable:      {unknown, notHappened, happened, 0},
		brokerorders.UnavailableAfter: {unknown, happened, happened, 1},
		brokerorders.CutBefore:        {unknown, notHappened, happened, 0},
		brokerorders.CutAfter:         {unknown, happened, happened, 1},
		brokerorders.HangBefore:       {unknown, notHappened, happened, 0},
		brokerorders.HangAfter:        {unknown, happened, happened, 1},
		brokerorders.RejectLater:      {happened, never, never, 0},
	} {
		t.Run(string(fault), func(t *testing.T) {
			t.Parallel()
			server, provider := start(t, brokerorders.Options{})
			server.Script(id, fault)
			ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
			defer cancel()
			if fault != brokerorders.HangBefore && fault != brokerorders.HangAfter {
				ctx = within(t)
			}
			_, err := provider.Execute(ctx, id, buy)
			wantVerdict(t, err, c.first)
			if n := len(server.Ledger()); n != c.placed {
				t.Errorf("%d orders were placed, want %d", n, c.placed)
			}
			found, err := provider.Find(within(t), payment.Search{Key: id, Request: &buy})
			wantVerdict(t, err, c.asked)
			// A second order with the id is no second order.
			again, err := provider.Execute(within(t), id, buy)
			wantVerdict(t, err, c.second)
			if c.asked == happened && again != found {
				t.Errorf("got %+v, found %+v", again, found)
			}
			if n := len(server.Ledger()); n > 1 {
				t.Errorf("%d orders were placed", n)
			}
		})
	}
}

func TestAReceiptIsTheBrokersOrder(t *testing.T) {
	t.Parallel()
	server, provider := start(t, brokerorders.Options{})
	receipt, err := provider.Execute(within(t), id, buy)
	must(t, err)
	placed := server.Ledger()[0]
	if want := (payment.Receipt{ID: placed.ID, Kind: "buy", Status: "accepted", Amount: 45200, Currency: "usd"}); receipt != want {
		t.Errorf("got %+v, want %+v", receipt, want)
	}
	if placed.ClientOrderID != id || placed.Symbol != "AAPL" || placed.Quantity != "2" || placed.Side != "buy" {
		t.Errorf("placed %+v", placed)
	}
	if _, err := provider.Find(within(t), payment.Search{Key: id}); err != nil {
		t.Errorf("by the id alone: %v", err)
	}
}

func TestAnOrderThatIsWrongIsNotSent(t *testing.T) {
	t.Parallel()
	server, provider := start(t, brokerorders.Options{})
	for field, r := range map[string]payment.Request{
		"kind":              {Kind: "short", Metadata: buy.Metadata},
		"metadata.symbol":   {Kind: "buy", Metadata: map[string]string{"symbol": "aapl; drop", "quantity": "1"}},
		"metadata.quantity": {Kind: "sell", Metadata: map[string]string{"symbol": "AAPL", "quantity": "-1"}},
	} {
		_, err := provider.Execute(within(t), id, r)
		wantVerdict(t, err, oncemill.Never)
		if err == nil || !strings.HasPrefix(err.Error(), "payment: "+field+" ") {
			t.Errorf("got %v, want it to name %s", err, field)
		}
	}
	for _, quantity := range []string{"", "0", "0.0", "01", "1e3", "1.", "1/2", strings.Repeat("9", 20)} {
		_, err := provider.Execute(within(t), id, payment.Request{Kind: "buy", Metadata: map[string]string{"symbol": "AAPL", "quantity": quantity}})
		wantVerdict(t, err, oncemill.Never)
	}
	if n := server.Requests(id); n != 0 {
		t.Errorf("%d requests were sent", n)
	}
}

func TestATokenOrAnAddressThatIsWrong(t *testing.T) {
	t.Parallel()
	_, provider := start(t, brokerorders.Options{})
	must(t, provider.Check(within(t)))
	wrong := *provider
	wrong.Token = "another"
	_, err := wrong.Execute(within(t), id, buy)
	wantVerdict(t, err, oncemill.NotHappened)
	if err := wrong.Check(within(t)); err == nil || strings.Contains(err.Error(), "another") {
		t.Errorf("got %v", err)
	}
	_, err = wrong.Find(within(t), payment.Search{Key: id})
	wantVerdict(t, err, oncemill.Unknown)
	for _, url := range []string{"http://127.0.0.1:1", "::"} {
		wrong.URL = url
		_, err = wrong.Execute(within(t), id, buy)
		wantVerdict(t, err, oncemill.NotHappened)
		_, err = wrong.Find(within(t), payment.Search{Key: id})
		wantVerdict(t, err, oncemill.Unknown)
	}
}

// What does not come from the broker proves nothing.
func TestAnAnswerOfSomethingElseIsUnknown(t *testing.T) {
	t.Parallel()
	for status, body := range map[int]string{
		200: `{"id": "order-1", "client_order_id": "om-another", "status": "filled"}`,
		401: `<html>`, 403: `<html>`, 404: `{"message": "page not found"}`, 422: `<html>`, 429: `{"message": "slow down"}`, 502: `<html>`,
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		}))
		provider := &brokerorders.Provider{URL: server.URL, Token: "t", Client: server.Client()}
		_, err := provider.Execute(within(t), id, buy)
		wantVerdict(t, err, oncemill.Unknown)
		_, found := provider.Find(within(t), payment.Search{Key: id})
		wantVerdict(t, found, oncemill.Unknown)
		if err == nil || found == nil {
			t.Errorf("HTTP %d: got %v and %v", status, err, found)
		}
		server.Close()
	}
}

func TestTheLedgersFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "ledger.jsonl")
	_, provider := start(t, brokerorders.Options{Ledger: path, Faults: func(_ string, nth int) brokerorders.Fault {
		if nth == 1 {
			return brokerorders.Unavailable
		}
		return brokerorders.None
	}})
	for range 3 {
		_, _ = provider.Execute(within(t), id, buy)
	}
	text, err := os.ReadFile(path)
	must(t, err)
	if n := strings.Count(string(text), id); n != 1 || !strings.HasSuffix(string(text), "}\n") {
		t.Errorf("got %s", text)
	}
}
