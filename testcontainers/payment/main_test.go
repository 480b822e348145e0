package payment_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stripe/stripe-go/v85"
	"go.uber.org/goleak"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/payment"
	"github.com/oncemill/oncemill/testcontainers/stripeserver"
)

func TestMain(m *testing.M) {
	// What stripe-go would log by itself.
	log := &loud{}
	stripe.DefaultLeveledLogger = log
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if text := log.text(); text != "" {
			fmt.Fprintln(os.Stderr, "stripe-go has logged:", text)
			code = 1
		}
		os.Exit(code)
	}))
}

// loud keeps what it is given.
type loud struct {
	mu    sync.Mutex
	lines []string
}

func (l *loud) note(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf(format, args...))
}

func (l *loud) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "\n")
}

func (l *loud) Debugf(format string, args ...any) { l.note(format, args...) }
func (l *loud) Infof(format string, args ...any)  { l.note(format, args...) }
func (l *loud) Warnf(format string, args ...any)  { l.note(format, args...) }
func (l *loud) Errorf(format string, args ...any) { l.note(format, args...) }

const key = "om-0123456789abcdef0123456789abcdef01234567"

var order = payment.Request{Amount: 1050, Currency: "usd", PaymentMethod: "pm_card_visa", Metadata: map[string]string{"order": "7"}}

// a shop is a fake Stripe and a client of it.
type shop struct {
	*payment.Stripe
	t      *testing.T
	server *stripeserver.Server
	clock  *clock
}

func newShop(t *testing.T, options stripeserver.Options) *shop {
	t.Helper()
	s := &shop{t: t, clock: &clock{}}
	options.Now = s.clock.now
	server, err := stripeserver.Start(options)
	must(t, err)
	s.server = server
	s.Stripe = &payment.Stripe{APIKey: stripeserver.DefaultAPIKey, BaseURL: server.URL()}
	t.Cleanup(func() {
		s.Stripe.Close()
		if err := server.Close(); err != nil {
			t.Errorf("close the server: %v", err)
		}
	})
	return s
}

// pay makes a payment and looks at the error's text.
func (s *shop) pay(key string, r payment.Request) (payment.Receipt, error) {
	s.t.Helper()
	return s.within(30*time.Second, key, r)
}

func (s *shop) within(limit time.Duration, key string, r payment.Request) (payment.Receipt, error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	receipt, err := s.Execute(ctx, key, r)
	s.discreet(err)
	return receipt, err
}

// discreet wants an error to keep secrets.
func (s *shop) discreet(err error) {
	s.t.Helper()
	if err != nil && (strings.Contains(err.Error(), stripeserver.DefaultAPIKey) || strings.Contains(err.Error(), "_secret_")) {
		s.t.Errorf("the error tells a secret: %v", err)
	}
}

// find asks about a payment that was made from an hour ago to in an hour.
func (s *shop) find(key string, r *payment.Request) (payment.Receipt, error) {
	s.t.Helper()
	now := s.clock.now()
	receipt, err := s.Find(within(s.t), payment.Search{Key: key, Request: r, From: now.Add(-time.Hour), To: now.Add(time.Hour)})
	s.discreet(err)
	return receipt, err
}

func (s *shop) faults(f ...stripeserver.Fault) {
	s.server.SetFaults(func(c stripeserver.Call) stripeserver.Fault {
		if c.Method != "POST" || c.Nth > len(f) {
			return stripeserver.None
		}
		return f[c.Nth-1]
	})
}

func (s *shop) wantLedger(n int) {
	s.t.Helper()
	if entries := s.server.Ledger(); len(entries) != n {
		s.t.Errorf("the ledger has %d entries, want %d: %+v", len(entries), n, entries)
	}
}

// requests counts the requests under a key.
func (s *shop) requests(key string) (n int) {
	for _, c := range s.server.Calls() {
		if c.Key == key {
			n++
		}
	}
	return n
}

func wantVerdict(t *testing.T, err error, want oncemill.Verdict) {
	t.Helper()
	if got := oncemill.VerdictOf(err); got != want {
		t.Errorf("got verdict %q of %v, want %q", got, err, want)
	}
}

// clock is the server's: what time it is, and some.
type clock struct {
	mu    sync.Mutex
	ahead time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.ahead)
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead += d
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
