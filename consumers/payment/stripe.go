package payment

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/stripe/stripe-go/v85"
)

const (
	// StripeKeyLifetime is for Guard.KeyLifetime. Stripe forgets an idempotency key when
	// it is at least 24 hours old, and then makes the payment again; an hour is for
	// clocks that differ and requests that are under way.
	// https://docs.stripe.com/api/idempotent_requests
	StripeKeyLifetime = 23 * time.Hour

	// StripeLandingBound is for Guard.LandingBound: how long after an attempt was over
	// Stripe may still receive it. What a process has written to a connection before it
	// died or gave up, the kernel goes on sending: Linux for about 15 minutes
	// (tcp_retries2). Stripe may then work on it for more than a minute.
	StripeLandingBound = 20 * time.Minute

	// stripeTimeout ends a request whose context does not.
	stripeTimeout = 80 * time.Second
)

// Stripe makes payments with PaymentIntents that are confirmed at once, off session,
// and refunds. Use it by its address, and set its fields before the first payment.
//
// Claim.ProviderKey is the Idempotency-Key of every attempt, and is with the payment
// as the metadata MetadataKey, by which Find recognises it.
type Stripe struct {
	// APIKey is a secret key ("sk_...") or a restricted one ("rk_..."), which must be
	// allowed to read and write PaymentIntents, and Charges and Refunds if there are
	// refunds. Required.
	APIKey string

	// BaseURL is where Stripe is. "" means https://api.stripe.com. Plain HTTP is for
	// this machine, and for keys of the test mode.
	BaseURL string

	// Account is the id of a connected account ("acct_...") in whose name to work. ""
	// means the account of the key.
	Account string

	// MostAmount is the largest amount that is sent, against amounts in the wrong unit.
	// 0 means 99999999, and what Stripe has for IDR, COP and INR. Stripe takes up to
	// 999999999999 from most cards.
	MostAmount int64

	// MostPages is how many lists of 100 payments Find looks through, before it says
	// that it does not know. 0 means 500.
	MostPages int

	// Narrow has Find believe that there is no payment where there is none of the
	// request's customer, or no refund of the request's payment, and not look through
	// all that the account has made in that time. It is for accounts that make more
	// payments than MostPages has room for, and wants a Decode that always gives the
	// same customer for a message.
	Narrow bool

	once      sync.Once
	client    *stripe.Client
	transport *http.Transport
	problem   error
}

// Names of the metadata with which Stripe keeps a payment's claim.
const (
	MetadataKey      = "oncemill_key"      // Claim.ProviderKey
	MetadataConsumer = "oncemill_consumer" // Claim.Consumer, where there is a claim and it fits
	MetadataMessage  = "oncemill_message"  // Claim.Key, the same
)

// Check reports what is wrong with the fields and asks Stripe for one PaymentIntent,
// so that a wrong key or address is found at once. It does not find out whether the
// key may write.
func (s *Stripe) Check(ctx context.Context) error {
	client, err := s.connect()
	if err != nil {
		return err
	}
	params := &stripe.PaymentIntentListParams{}
	params.Limit, params.Single, params.StripeAccount = stripe.Int64(1), true, s.account()
	var list *stripe.V1List[*stripe.PaymentIntent]
	trip, err := s.call(ctx, func(ctx context.Context) error {
		list = client.V1PaymentIntents.List(ctx, params)
		return list.Err()
	})
	if err == nil {
		err = checkList(list.LastResponse())
	}
	return trip.refused(err)
}

// Close closes connections that are not in use. Stripe closes them itself when they
// have not been for a while, so that only tests need it.
func (s *Stripe) Close() {
	if _, err := s.connect(); err == nil {
		s.transport.CloseIdleConnections()
	}
}

func (s *Stripe) connect() (*stripe.Client, error) {
	s.once.Do(func() {
		if s.problem = s.check(); s.problem == nil {
			s.setUp()
		}
	})
	return s.client, s.problem
}

func (s *Stripe) check() error {
	switch {
	case s.APIKey == "":
		return errors.New("payment: Stripe.APIKey is empty: set it to a secret key (sk_...) or a restricted one (rk_...)")
	case strings.HasPrefix(s.APIKey, "pk_"):
		return errors.New("payment: Stripe.APIKey is a publishable key: set it to a secret key (sk_...) or a restricted one (rk_...)")
	case strings.ContainsFunc(s.APIKey, func(r rune) bool { return r <= ' ' || r > '~' }):
		return errors.New("payment: Stripe.APIKey has a blank or a line break in it: read it without")
	case s.MostAmount < 0:
		return fmt.Errorf("payment: Stripe.MostAmount is %d: must not be negative, 0 is the default", s.MostAmount)
	case s.MostPages < 0:
		return fmt.Errorf("payment: Stripe.MostPages is %d: must not be negative, 0 is the default", s.MostPages)
	case s.BaseURL == "":
		return nil
	}
	u, err := url.Parse(s.BaseURL)
	switch {
	case err != nil || u.Host == "" || u.User != nil || (u.Scheme != "https" && u.Scheme != "http"):
		return errors.New("payment: Stripe.BaseURL must be a URL such as https://api.stripe.com, without a user")
	case u.Scheme == "http" && !strings.Contains(s.APIKey, "_test_") && !isLoopback(u.Hostname()):
		return fmt.Errorf("payment: Stripe.BaseURL is %s: the API key would travel in the clear, use https", s.BaseURL)
	}
	return nil
}

func isLoopback(host string) bool {
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}

// setUp makes a client of our own: nothing in stripe-go's globals has a say in it.
func (s *Stripe) setUp() {
	s.transport = http.DefaultTransport.(*http.Transport).Clone()
	s.transport.MaxIdleConnsPerHost = 100
	s.transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	// Only HTTP/1: HTTP/2 has ways of its own to send a request again.
	s.transport.Protocols = new(http.Protocols)
	s.transport.Protocols.SetHTTP1(true)
	// Not so long that Stripe or something in between closes a connection just when
	// it is used again, which nobody can tell from a payment whose answer was lost.
	s.transport.IdleConnTimeout = 15 * time.Second
	config := &stripe.BackendConfig{
		HTTPClient: &http.Client{
			Transport:     sendOnce{s.transport},
			Timeout:       stripeTimeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		// stripe-go would send twice more, and return the last error only: a 429 or a
		// refused connection would hide that the first request has got through.
		MaxNetworkRetries: stripe.Int64(0),
		LeveledLogger:     &stripe.LeveledLogger{Level: stripe.LevelNull},
		EnableTelemetry:   stripe.Bool(false),
	}
	if s.BaseURL != "" {
		config.URL = stripe.String(s.BaseURL)
	}
	s.client = stripe.NewClient(s.APIKey, stripe.WithBackends(stripe.NewBackendsWithConfig(config)))
}

func (s *Stripe) account() *string {
	if s.Account == "" {
		return nil
	}
	return &s.Account
}
