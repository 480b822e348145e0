package guard_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
)

// A broker executes orders, as often as it is told to: nothing in it keeps an order from
// being placed twice. It runs in the test's process, so that what is killed does not touch
// it.
type broker struct {
	url string

	mu       sync.Mutex
	script   map[string][]fault // by client order id
	requests map[string]int
	executed map[string]int
}

// A fault is what a broker does with a request instead of placing the order.
type fault string

const (
	unavailable   fault = "503, and it is not placed"
	placedUnknown fault = "503, and it is placed"
	lostReply     fault = "it is placed, and the connection breaks"
	rejected      fault = "422"
)

func newBroker(t testing.TB) *broker {
	t.Helper()
	b := &broker{script: make(map[string][]fault), requests: make(map[string]int), executed: make(map[string]int)}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /orders/{id}", b.place)
	mux.HandleFunc("GET /orders/{id}", b.find)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	b.url = server.URL
	return b
}

// faults says what becomes of the first requests of an order.
func (b *broker) faults(id string, faults ...fault) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.script[id] = faults
}

func (b *broker) place(w http.ResponseWriter, r *http.Request) {
	switch status, lost := b.execute(r.PathValue("id")); {
	case lost:
		if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
			conn.Close()
		}
	default:
		w.WriteHeader(status)
	}
}

// execute has an order placed, unless its script has something else happen.
func (b *broker) execute(id string) (status int, lost bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests[id]++
	var does fault
	if script := b.script[id]; len(script) > 0 {
		does, b.script[id] = script[0], script[1:]
	}
	switch does {
	case unavailable:
		return http.StatusServiceUnavailable, false
	case rejected:
		return http.StatusUnprocessableEntity, false
	}
	b.executed[id]++
	if does == placedUnknown {
		return http.StatusServiceUnavailable, false
	}
	return http.StatusOK, does == lostReply
}

func (b *broker) find(w http.ResponseWriter, r *http.Request) {
	if b.times(r.PathValue("id")) == 0 {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]string{"id": r.PathValue("id")})
}

// times returns how often an order was placed.
func (b *broker) times(id string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.executed[id]
}

// ledger returns how often each order was placed.
func (b *broker) ledger() map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := make(map[string]int, len(b.executed))
	for id, n := range b.executed {
		all[id] = n
	}
	return all
}

// asked returns how often a request to place an order has come.
func (b *broker) asked(id string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.requests[id]
}

// order asks a broker at a URL to place an order. The error is of a reply that is lost.
func order(client *http.Client, broker, id string) (status int, err error) {
	response, err := client.Post(broker+"/orders/"+url.PathEscape(id), "", nil)
	if err != nil {
		return 0, err
	}
	return response.StatusCode, response.Body.Close()
}

// known asks a broker whether it knows an order.
func known(client *http.Client, broker, id string) (bool, error) {
	response, err := client.Get(broker + "/orders/" + url.PathEscape(id))
	if err != nil {
		return false, err
	}
	switch response.Body.Close(); response.StatusCode {
	case http.StatusOK:
		return true, nil
	case http.StatusNotFound:
		return false, nil
	}
	return false, fmt.Errorf("the broker answers %s", response.Status)
}

// refusedConnection tells whether nothing can have been sent.
func refusedConnection(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}
