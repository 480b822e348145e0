package brokerorders

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/payment"
)

// Kinds of requests, and the metadata that they need.
const (
	Buy  = "buy"
	Sell = "sell"

	Symbol   = "symbol"   // such as "AAPL"
	Quantity = "quantity" // a decimal number, such as "10" or "0.5"
)

// Provider places orders at a broker. A request has the kind Buy or Sell, and Symbol
// and Quantity in its metadata. Its amount is what the order is estimated to cost, for
// reports; the broker is not told.
type Provider struct {
	// URL is where the broker is, such as https://api.broker.example. Required.
	URL string

	// Token authorises us. Required.
	Token string

	// Client sends the requests. nil means http.DefaultClient. Requests have no
	// Idempotency-Key in their headers, so that net/http does not repeat them.
	Client *http.Client
}

var _ payment.Provider = (*Provider)(nil)

// order is an order, as the API has it.
type order struct {
	ID            string `json:"id,omitempty"`
	ClientOrderID string `json:"client_order_id"`
	Symbol        string `json:"symbol"`
	Quantity      string `json:"qty"`
	Side          string `json:"side"`
	Type          string `json:"type"`
	TimeInForce   string `json:"time_in_force"`
	Status        string `json:"status,omitempty"`
}

// refusal is the body of an answer that is an error.
type refusal struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// Codes that matter.
const (
	codeInvalid      = 40010001 // also for an id that is taken
	codeInsufficient = 40310000
	codeNotFound     = 40410000
	notUnique        = "client_order_id must be unique"
)

// Check asks for an order that is not there, to find a wrong URL or token at once.
func (p *Provider) Check(ctx context.Context) error {
	answer, status, err := p.lookUp(ctx, "om-check")
	if err != nil || status == http.StatusNotFound && isNotFound(answer) {
		return err
	}
	return fmt.Errorf("broker: HTTP %d: are Provider.URL and Token right?", status)
}

// Execute places an order. See payment.Provider.
func (p *Provider) Execute(ctx context.Context, key string, r payment.Request) (payment.Receipt, error) {
	if err := checkOrder(r); err != nil {
		return payment.Receipt{}, err
	}
	o := order{
		ClientOrderID: key, Symbol: r.Metadata[Symbol], Quantity: r.Metadata[Quantity], Side: r.Kind,
		Type: "market", TimeInForce: "day",
	}
	body, err := json.Marshal(o)
	if err != nil {
		return payment.Receipt{}, oncemill.DidNotHappen(err)
	}
	status, answer, connected, err := p.send(ctx, http.MethodPost, "/v2/orders", body)
	switch {
	case !connected:
		return payment.Receipt{}, oncemill.ProviderAway(fmt.Errorf("broker: nothing was sent: %w", err))
	case err != nil:
		return payment.Receipt{}, fmt.Errorf("broker: %w", err)
	case status == http.StatusOK:
		return receipt(answer, key, &r)
	}
	return p.refused(ctx, key, r, status, answer)
}

func (p *Provider) refused(ctx context.Context, key string, r payment.Request, status int, answer []byte) (payment.Receipt, error) {
	var why refusal
	known := json.Unmarshal(answer, &why) == nil && why.Message != ""
	err := fmt.Errorf("broker: HTTP %d %s", status, why.Message)
	switch {
	case !known:
		return payment.Receipt{}, err // it is not the broker who says so
	case status == http.StatusUnauthorized:
		return payment.Receipt{}, oncemill.ProviderAway(err)
	case status == http.StatusUnprocessableEntity && strings.Contains(why.Message, notUnique):
		receipt, found := p.find(ctx, key, &r)
		if oncemill.VerdictOf(found) == oncemill.NotHappened {
			return payment.Receipt{}, fmt.Errorf("%w, and there is no such order: %v", err, found)
		}
		return receipt, found
	case status == http.StatusUnprocessableEntity, status == http.StatusForbidden && why.Code == codeInsufficient:
		return payment.Receipt{}, oncemill.NeverWill(err)
	}
	return payment.Receipt{}, err
}

// Find looks an order up by its id. See payment.Provider.
func (p *Provider) Find(ctx context.Context, s payment.Search) (payment.Receipt, error) {
	return p.find(ctx, s.Key, s.Request)
}

func (p *Provider) find(ctx context.Context, key string, r *payment.Request) (payment.Receipt, error) {
	answer, status, err := p.lookUp(ctx, key)
	switch {
	case err != nil:
		return payment.Receipt{}, err
	case status == http.StatusOK:
		return receipt(answer, key, r)
	case status == http.StatusNotFound && isNotFound(answer):
		return payment.Receipt{}, oncemill.DidNotHappen(fmt.Errorf("broker: no order %s: %w", key, payment.ErrNotFound))
	}
	return payment.Receipt{}, fmt.Errorf("broker: HTTP %d to a question for the order %s", status, key)
}

// isNotFound tells the broker's 404 from one that is not its own, such as that of a
// wrong URL: that would prove that no order was ever placed.
func isNotFound(answer []byte) bool {
	var why refusal
	return json.Unmarshal(answer, &why) == nil && why.Code == codeNotFound
}

func (p *Provider) lookUp(ctx context.Context, key string) (answer []byte, status int, err error) {
	status, answer, _, err = p.send(ctx, http.MethodGet, "/v2/orders:by_client_order_id?client_order_id="+url.QueryEscape(key), nil)
	if err != nil {
		err = fmt.Errorf("broker: %w", err)
	}
	return answer, status, err
}

// send sends a request. connected says whether there was a connection to write it to:
// if not, it certainly was not sent.
func (p *Provider) send(ctx context.Context, method, path string, body []byte) (status int, answer []byte, connected bool, err error) {
	var got atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { got.Store(true) }})
	r, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(p.URL, "/")+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, false, fmt.Errorf("Provider.URL: %w", err)
	}
	r.Header.Set("Authorization", "Bearer "+p.Token)
	r.Header.Set("Content-Type", "application/json")
	client := p.Client
	if client == nil {
		client = http.DefaultClient
	}
	resp, err := client.Do(r)
	if err != nil {
		return 0, nil, got.Load(), err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, answer, true, err
}

// receipt says what an order's status means.
func receipt(answer []byte, key string, r *payment.Request) (payment.Receipt, error) {
	var o order
	if err := json.Unmarshal(answer, &o); err != nil || o.ID == "" || o.ClientOrderID != key {
		return payment.Receipt{}, errors.New("broker: the answer is not our order")
	}
	receipt := payment.Receipt{ID: o.ID, Kind: o.Side, Status: o.Status}
	if r != nil {
		receipt.Amount, receipt.Currency = r.Amount, r.Currency
	}
	switch o.Status {
	case "new", "accepted", "pending_new", "partially_filled", "filled", "done_for_day", "canceled", "expired", "replaced":
		return receipt, nil // it was placed, whatever became of it
	case "rejected":
		return payment.Receipt{}, payment.Final(fmt.Errorf("broker: order %s was rejected", o.ID))
	}
	return payment.Receipt{}, fmt.Errorf("broker: order %s has the status %.40q, which says nothing to us", o.ID, o.Status)
}

var (
	symbols    = regexp.MustCompile(`^[A-Z][A-Z0-9./]{0,11}$`)
	quantities = regexp.MustCompile(`^(0|[1-9][0-9]{0,11})(\.[0-9]{1,9})?$`)
)

func checkOrder(r payment.Request) error {
	symbol, quantity := r.Metadata[Symbol], r.Metadata[Quantity]
	switch {
	case r.Kind != Buy && r.Kind != Sell:
		return &payment.InputError{Field: "kind", Reason: fmt.Sprintf("is %.40q: must be buy or sell", r.Kind)}
	case !symbols.MatchString(symbol):
		return &payment.InputError{Field: "metadata.symbol", Reason: fmt.Sprintf("is %.40q: must be one such as AAPL", symbol)}
	case !quantities.MatchString(quantity) || strings.Trim(quantity, "0.") == "":
		return &payment.InputError{Field: "metadata.quantity", Reason: fmt.Sprintf("is %.40q: must be a decimal number above zero, such as 10 or 0.5", quantity)}
	}
	return nil
}
