package stripeserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// DefaultAPIKey is the API key that is accepted where Options.APIKey is empty.
const DefaultAPIKey = "sk_test_oncemill"

// Options say how a server behaves. The zero value is a Stripe on a good day.
type Options struct {
	// Addr is the address to listen on. "" means a free port of 127.0.0.1.
	Addr string

	// APIKey is the only one that is accepted. "" means DefaultAPIKey.
	APIKey string

	// KeyLifetime is how long idempotency keys are remembered. 0 means 24 hours.
	KeyLifetime time.Duration

	// VisibleAfter is how long a new object is missing from lists. Stripe's are not
	// known to lag; see what your code does if they do.
	VisibleAfter time.Duration

	// Faults says what goes wrong with a request. It is called with one request at a
	// time. nil: nothing.
	Faults func(Call) Fault

	// Delay is how long SlowBefore and SlowAfter wait. 0 means 1 second.
	Delay time.Duration

	// Ledger is the path of a file to append entries to, as JSON lines, for
	// ReadLedger in another process. "": none.
	Ledger string

	// Now is the clock by which objects are created and keys expire. nil means
	// time.Now.
	Now func() time.Time
}

// A Server is a Stripe on this machine. Start one with Start.
type Server struct {
	options Options
	url     string
	http    *http.Server
	served  chan error
	closing chan struct{}

	mu      sync.Mutex
	faults  func(Call) Fault
	keys    map[string]*idempotent
	counts  map[string]int // requests by method, path and key
	calls   []Call
	intents []*intent // by creation
	refunds []*refund
	ledger  *ledger
	last    int // number in ids
}

// Start starts a server, which serves until Close.
func Start(o Options) (*Server, error) {
	if o.Addr == "" {
		o.Addr = "127.0.0.1:0"
	}
	if o.APIKey == "" {
		o.APIKey = DefaultAPIKey
	}
	if o.KeyLifetime == 0 {
		o.KeyLifetime = 24 * time.Hour
	}
	if o.Delay == 0 {
		o.Delay = time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	ledger, err := openLedger(o.Ledger)
	if err != nil {
		return nil, fmt.Errorf("stripeserver: ledger: %w", err)
	}
	listener, err := net.Listen("tcp", o.Addr)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("stripeserver: %w", err), ledger.close())
	}
	s := &Server{
		options: o, url: "http://" + listener.Addr().String(), served: make(chan error, 1), closing: make(chan struct{}),
		faults: o.Faults, keys: map[string]*idempotent{}, counts: map[string]int{}, ledger: ledger,
	}
	s.http = &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second}
	go func() { s.served <- s.http.Serve(listener) }()
	return s, nil
}

// URL is where the server is, such as http://127.0.0.1:41234.
func (s *Server) URL() string { return s.url }

// Close ends the server and whatever hangs in it. Call it once.
func (s *Server) Close() error {
	close(s.closing)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, s.http.Close())
	}
	if served := <-s.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(err, s.ledger.close())
}

// SetFaults replaces Options.Faults.
func (s *Server) SetFaults(choose func(Call) Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = choose
}

// Calls returns the requests that were received, in their order, also those that
// were refused or whose connection was cut.
func (s *Server) Calls() []Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

// note takes down a request and chooses its fault.
func (s *Server) note(c Call) (Call, Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := c.Method + " " + c.Path + " " + c.Key
	s.counts[id]++
	c.Nth = s.counts[id]
	s.calls = append(s.calls, c)
	if s.faults == nil {
		return c, None
	}
	return c, s.faults(c)
}

// newID returns an id that sorts as it was created. s.mu is held.
func (s *Server) newID(prefix string) string {
	s.last++
	return fmt.Sprintf("%s_fake%018d", prefix, s.last)
}
