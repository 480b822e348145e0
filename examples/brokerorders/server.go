package brokerorders

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"
)

// A Fault is what goes wrong with an order that is being placed.
type Fault string

// Faults.
const (
	None             Fault = ""
	Reject           Fault = "reject"            // 422 "order is not allowed", not placed
	Insufficient     Fault = "insufficient"      // 403 "insufficient buying power", not placed
	Unavailable      Fault = "unavailable"       // 503, not placed
	UnavailableAfter Fault = "unavailable after" // 503, and it was placed
	CutBefore        Fault = "cut before"        // the connection breaks, not placed
	CutAfter         Fault = "cut after"         // the connection breaks, and it was placed
	HangBefore       Fault = "hang before"       // no answer, not placed
	HangAfter        Fault = "hang after"        // no answer, and it was placed
	RejectLater      Fault = "reject later"      // 200, and the exchange rejects it
)

// DefaultToken is what is accepted where Options.Token is empty.
const DefaultToken = "broker-test-token"

// Options say how a Server behaves. The zero value is a broker on a good day.
type Options struct {
	// Addr is the address to listen on. "" means a free port of 127.0.0.1.
	Addr string

	// Token is the only one that is accepted. "" means DefaultToken.
	Token string

	// Faults says what goes wrong with the nth request, from 1, to place an order under
	// an id, unless there is a Script for it. nil: nothing.
	Faults func(clientOrderID string, nth int) Fault

	// Ledger is the path of a file to append placed orders to, as JSON lines. "": none.
	Ledger string
}

// Placed is an order that the broker has placed.
type Placed struct {
	At            time.Time `json:"at"`
	ID            string    `json:"id"`
	ClientOrderID string    `json:"client_order_id"`
	Symbol        string    `json:"symbol"`
	Quantity      string    `json:"quantity"`
	Side          string    `json:"side"`
}

// A Server is a broker on this machine. Start one with Start.
type Server struct {
	options Options
	url     string
	http    *http.Server
	served  chan error
	closing chan struct{}
	file    *os.File

	mu     sync.Mutex
	script map[string][]Fault
	asked  map[string]int // requests to place, by id
	orders map[string]*order
	placed []Placed
}

// Start starts a server, which serves until Close.
func Start(o Options) (*Server, error) {
	if o.Addr == "" {
		o.Addr = "127.0.0.1:0"
	}
	if o.Token == "" {
		o.Token = DefaultToken
	}
	s := &Server{
		options: o, served: make(chan error, 1), closing: make(chan struct{}),
		script: map[string][]Fault{}, asked: map[string]int{}, orders: map[string]*order{},
	}
	if o.Ledger != "" {
		var err error
		if s.file, err = os.OpenFile(o.Ledger, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
			return nil, err
		}
	}
	listener, err := net.Listen("tcp", o.Addr)
	if err != nil {
		return nil, errors.Join(err, s.closeFile())
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v2/orders", s.place)
	mux.HandleFunc("GET /v2/orders:by_client_order_id", s.lookUp)
	s.url = "http://" + listener.Addr().String()
	s.http = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { s.served <- s.http.Serve(listener) }()
	return s, nil
}

// URL is where the server is, such as http://127.0.0.1:41234.
func (s *Server) URL() string { return s.url }

// Close ends the server. Call it once.
func (s *Server) Close() error {
	close(s.closing)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if served := <-s.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return errors.Join(err, s.closeFile())
}

func (s *Server) closeFile() error {
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}

// Script says what goes wrong with the first requests to place an order under an id,
// one after the other. The id is oncemill.ProviderKey of the consumer and the
// message's key.
func (s *Server) Script(clientOrderID string, faults ...Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.script[clientOrderID] = faults
}

// Ledger returns the orders that were placed.
func (s *Server) Ledger() []Placed {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.placed)
}

// Requests returns how often it was asked to place an order under an id.
func (s *Server) Requests(clientOrderID string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[clientOrderID]
}

func (s *Server) authorised(w http.ResponseWriter, r *http.Request) bool {
	if r.Header.Get("Authorization") == "Bearer "+s.options.Token {
		return true
	}
	answer(w, http.StatusUnauthorized, refusal{40110000, "unauthorized"})
	return false
}

func (s *Server) place(w http.ResponseWriter, r *http.Request) {
	if !s.authorised(w, r) {
		return
	}
	d := json.NewDecoder(io.LimitReader(r.Body, 1<<20))
	d.DisallowUnknownFields()
	var o order
	if err := d.Decode(&o); err != nil {
		answer(w, http.StatusUnprocessableEntity, refusal{codeInvalid, "the order cannot be read: " + err.Error()})
		return
	}
	fault := s.fault(o.ClientOrderID)
	switch fault {
	case Reject:
		answer(w, http.StatusUnprocessableEntity, refusal{42210000, "order is not allowed: asset " + o.Symbol + " is not tradable"})
	case Insufficient:
		answer(w, http.StatusForbidden, refusal{codeInsufficient, "insufficient buying power"})
	case Unavailable:
		http.Error(w, "service unavailable", http.StatusServiceUnavailable)
	case CutBefore:
		cut(w)
	case HangBefore:
		s.hang(r)
	default:
		s.accept(w, r, o, fault)
	}
}

// accept places an order, unless its id is taken, and answers, unless something goes
// wrong with that.
func (s *Server) accept(w http.ResponseWriter, r *http.Request, o order, fault Fault) {
	status, body := s.add(&o, fault)
	switch fault {
	case UnavailableAfter:
		http.Error(w, "service unavailable", http.StatusServiceUnavailable)
	case CutAfter:
		cut(w)
	case HangAfter:
		s.hang(r)
	default:
		answer(w, status, body)
	}
}

func (s *Server) fault(id string) Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[id]++
	script, ok := s.script[id]
	switch {
	case ok && len(script) == 0, !ok && s.options.Faults == nil:
		return None
	case ok:
		s.script[id] = script[1:]
		return script[0]
	}
	return s.options.Faults(id, s.asked[id])
}

// add returns the answer to an order.
func (s *Server) add(o *order, fault Fault) (status int, body any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case o.ClientOrderID == "" || len(o.ClientOrderID) > 48:
		return http.StatusUnprocessableEntity, refusal{codeInvalid, "client_order_id must have 1 to 48 characters"}
	case s.orders[o.ClientOrderID] != nil:
		return http.StatusUnprocessableEntity, refusal{codeInvalid, notUnique}
	case o.Side != Buy && o.Side != Sell || o.Type != "market" || o.TimeInForce != "day" || o.Symbol == "" || o.Quantity == "":
		return http.StatusUnprocessableEntity, refusal{codeInvalid, "side, type, time_in_force, symbol or qty is wrong"}
	}
	placed := *o
	placed.ID, placed.Status = fmt.Sprintf("order-%06d", len(s.orders)+1), "accepted"
	s.orders[o.ClientOrderID] = &placed
	answered := placed
	if fault == RejectLater {
		placed.Status = "rejected"
		return http.StatusOK, answered
	}
	entry := Placed{time.Now(), placed.ID, o.ClientOrderID, o.Symbol, o.Quantity, o.Side}
	s.placed = append(s.placed, entry)
	if err := s.write(entry); err != nil {
		return http.StatusInternalServerError, refusal{50010000, err.Error()}
	}
	return http.StatusOK, answered
}

func (s *Server) write(entry Placed) error {
	if s.file == nil {
		return nil
	}
	line, err := json.Marshal(entry)
	if err == nil {
		_, err = s.file.Write(append(line, '\n'))
	}
	return err
}

func (s *Server) lookUp(w http.ResponseWriter, r *http.Request) {
	if !s.authorised(w, r) {
		return
	}
	s.mu.Lock()
	o := s.orders[r.URL.Query().Get("client_order_id")]
	s.mu.Unlock()
	if o == nil {
		answer(w, http.StatusNotFound, refusal{codeNotFound, "order not found"})
		return
	}
	answer(w, http.StatusOK, o)
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // a client that has gone does not want to know
}

func cut(w http.ResponseWriter) {
	if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
		_ = conn.Close()
	}
}

func (s *Server) hang(r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-s.closing:
	}
}
