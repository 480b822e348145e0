package effects_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// What a request tells the provider, beside its idempotency key.
const (
	keyHeader   = "Idempotency-Key" // for one that honours it. net/http sends such a request again by itself
	idHeader    = "Client-Order-Id" // for the others
	untilHeader = "Good-Until"      // RFC 3339: after that it is not to be executed any more
)

// header is how a provider is told the key.
func (p policy) header() string {
	if p == idempotent {
		return keyHeader
	}
	return idHeader
}

// landing is how long after its Good-Until the provider may still execute a request. It
// never does so later, which is what makes a LandingBound one.
const landing = 300 * time.Millisecond

// A provider makes effects. It runs in the test's process, so that killing workers does
// not touch it.
type provider struct {
	t      *testing.T
	policy policy
	lag    time.Duration             // effects are listed that long after they were executed
	fault  func(r request) behaviour // what becomes of a request; nil: it is served

	mu       sync.Mutex
	ledger   []entry
	stored   map[string]string // replies by key
	listed   map[string]time.Time
	seen     map[string]int // requests by key
	refused  map[string]bool
	asked    map[string]int
	forgets  bool // it has forgotten all keys, and stores no more
	server   *http.Server
	address  string
	ended    chan struct{} // closed for requests that hang
	serving  sync.WaitGroup
	unserved int // what arrived after its Good-Until
}

// An entry is an effect that was executed.
type entry struct {
	key string // ProviderKey
	at  time.Time
}

// A request is an attempt at an effect.
type request struct {
	key    string
	number string // of the order
	nth    int    // of this key, from 1
}

// A behaviour is what a provider does with a request.
type behaviour int

const (
	serve     behaviour = iota
	loseReply           // it is executed, and the connection cut
	cut                 // the connection is cut, and it is not executed
	decline             // it is refused for good
	hang                // it is neither executed nor answered
	hangAfter           // it is executed and not answered
	late                // it is executed after its Good-Until, but within landing, and not answered
)

func newProvider(t *testing.T, p policy) *provider {
	t.Helper()
	v := &provider{
		t: t, policy: p, stored: make(map[string]string), listed: make(map[string]time.Time), seen: make(map[string]int),
		refused: make(map[string]bool), asked: make(map[string]int), address: "127.0.0.1:0", ended: make(chan struct{}),
	}
	v.comeBack()
	t.Cleanup(func() {
		close(v.ended)
		v.goAway()
	})
	return v
}

func (p *provider) url() string { return "http://" + p.address }

// goAway closes the listener and all connections: from now on they are refused.
func (p *provider) goAway() {
	_ = p.server.Close()
	p.serving.Wait()
}

// comeBack listens again, at the same address.
func (p *provider) comeBack() {
	p.t.Helper()
	listener, err := net.Listen("tcp", p.address)
	must(p.t, err)
	p.address = listener.Addr().String()
	mux := http.NewServeMux()
	mux.HandleFunc("POST /effects", p.make)
	mux.HandleFunc("GET /effects/{key}", p.find)
	p.server = &http.Server{Handler: mux}
	server := p.server
	p.serving.Go(func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			p.t.Errorf("provider: %v", err)
		}
	})
}

// make is an attempt at an effect.
func (p *provider) make(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	until, errUntil := time.Parse(time.RFC3339Nano, r.Header.Get(untilHeader))
	if err = errors.Join(err, errUntil); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	q := request{key: r.Header.Get(p.policy.header()), number: string(body)}
	p.mu.Lock()
	p.seen[q.key]++
	q.nth = p.seen[q.key]
	fault := p.fault
	p.mu.Unlock()
	does := serve
	if fault != nil {
		does = fault(q)
	}
	switch does {
	case serve:
		status, reply := p.execute(q, until)
		w.WriteHeader(status)
		fmt.Fprint(w, reply)
	case decline:
		p.mu.Lock()
		p.refused[q.key] = true
		p.mu.Unlock()
		w.WriteHeader(http.StatusPaymentRequired)
	default:
		p.misbehave(w, r, does, q, until)
	}
}

// misbehave is what comes to no reply.
func (p *provider) misbehave(w http.ResponseWriter, r *http.Request, does behaviour, q request, until time.Time) {
	switch does {
	case loseReply, hangAfter:
		p.execute(q, until)
	case late:
		time.Sleep(time.Until(until.Add(landing / 2))) // the point is to be late
		p.execute(q, until)
	}
	if does == hang || does == hangAfter {
		select {
		case <-r.Context().Done():
		case <-p.ended:
		}
	}
	if conn, _, err := w.(http.Hijacker).Hijack(); err == nil {
		conn.Close()
	}
}

// execute has the effect happen, unless it is known by its key.
func (p *provider) execute(q request, until time.Time) (status int, reply string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if reply, known := p.stored[q.key]; known && p.policy == idempotent && !p.forgets {
		return http.StatusOK, reply
	}
	now := time.Now()
	if now.After(until.Add(landing)) {
		p.unserved++
		return http.StatusGone, ""
	}
	reply = fmt.Sprintf("receipt-%s-%d", q.number, len(p.ledger))
	p.ledger = append(p.ledger, entry{q.key, now})
	p.stored[q.key] = reply
	p.listed[q.key] = now.Add(p.lag)
	return http.StatusCreated, reply
}

// find tells what became of an effect, for those who may ask.
func (p *provider) find(w http.ResponseWriter, r *http.Request) {
	key := r.PathValue("key")
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked[key]++
	listed, known := p.listed[key]
	switch {
	case p.policy != queryable:
		w.WriteHeader(http.StatusNotImplemented)
	case known && !time.Now().Before(listed):
		fmt.Fprint(w, p.stored[key])
	case p.refused[key]:
		w.WriteHeader(http.StatusGone)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

// executed returns how often each key's effect happened.
func (p *provider) executed() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	times := make(map[string]int)
	for _, e := range p.ledger {
		times[e.key]++
	}
	return times
}

// requests returns how many attempts have come.
func (p *provider) requests() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, times := range p.seen {
		n += times
	}
	return n
}

// forget has the provider forget the keys of everything so far, and those to come.
func (p *provider) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forgets = true
}

// misbehaves sets what becomes of requests from now on.
func (p *provider) misbehaves(fault func(r request) behaviour) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = fault
}

// first has a behaviour strike the first request of each key.
func first(b behaviour) func(request) behaviour {
	return func(r request) behaviour {
		if r.nth == 1 {
			return b
		}
		return serve
	}
}

// chaos has some of the orders' first requests go wrong, by the end of their numbers.
func chaos(r request) behaviour {
	switch {
	case declined(r.number):
		return decline
	case r.nth > 1:
		return serve
	case strings.HasSuffix(r.number, "13"):
		return loseReply
	case strings.HasSuffix(r.number, "31"), strings.HasSuffix(r.number, "51"), strings.HasSuffix(r.number, "91"):
		return cut
	case strings.HasSuffix(r.number, "57"):
		return hangAfter
	}
	return serve
}

// declined reports whether chaos refuses an order for good.
func declined(number string) bool { return strings.HasSuffix(number, "77") }
