package client_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	_ "github.com/lib/pq"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/guard"
	"github.com/oncemill/oncemill/guard/client"
	"github.com/oncemill/oncemill/internal/testenv"
)

// These tests are on the real guard, and a real Postgres.

const auditToken = "the-token-of-the-operator-of-all-tenants"

// real starts a guard, behind what a test puts in front of it, and returns a client of it.
func real(t *testing.T, tenants *guard.Tenants, before func(guard http.Handler) http.Handler) *client.Client {
	t.Helper()
	db := testenv.OpenByIndex(t, testenv.PostgresURL(t))
	db.SetMaxIdleConns(8)
	h := &guard.Handler{
		Inbox:   &oncemill.Inbox{DB: db, ClaimBatch: 64, DrainTimeout: 5 * time.Second},
		Tenants: tenants, AuditToken: auditToken,
	}
	must(t, h.Check(t.Context()))
	var handler http.Handler = h
	if before != nil {
		handler = before(h)
	}
	server := httptest.NewServer(handler)
	transport := &http.Transport{MaxIdleConnsPerHost: 16}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		server.Close()
	})
	return &client.Client{URL: server.URL, AuditToken: auditToken, HTTP: &http.Client{Transport: transport}}
}

// withTenants makes a file of tenants, and returns the API key of each.
func withTenants(t *testing.T, names ...string) (*guard.Tenants, []string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "tenants.json")
	var keys []string
	must(t, guard.EditTenants(file, func(tenants []guard.TenantEntry) ([]guard.TenantEntry, error) {
		for _, name := range names {
			key, entry := guard.NewAPIKey()
			keys = append(keys, key)
			tenants = append(tenants, guard.TenantEntry{Name: name, Keys: []guard.KeyEntry{entry}})
		}
		return tenants, nil
	}))
	return &guard.Tenants{File: file}, keys
}

// losing carries out the first request of each path, and loses its reply.
func losing(h http.Handler) http.Handler {
	var seen sync.Map
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, again := seen.LoadOrStore(r.URL.Path, true); again {
			h.ServeHTTP(w, r)
			return
		}
		h.ServeHTTP(httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler)
	})
}

func TestARealGuardGivesALostProceedBack(t *testing.T) {
	t.Parallel()
	c := real(t, nil, losing)
	made := 0
	result, err := c.Do(t.Context(), order(), func(context.Context) (json.RawMessage, error) {
		made++
		return json.RawMessage(`{"receipt":"r1"}`), nil
	})
	must(t, err)
	if made != 1 || string(result) != `{"receipt":"r1"}` {
		t.Errorf("it was made %d times, with the result %s", made, result)
	}
	result, err = c.Do(t.Context(), order(), never(t))
	must(t, err)
	if string(result) != `{"receipt":"r1"}` {
		t.Errorf("the duplicate got %s", result)
	}
}

// The reply is lost while the guard still works on the claim, and the repeat overtakes it.
func TestARealGuardGivesAProceedToARepeatThatOvertakesTheFirst(t *testing.T) {
	t.Parallel()
	var first atomic.Bool
	var running sync.WaitGroup
	c := real(t, nil, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/claim" || !first.CompareAndSwap(false, true) {
				h.ServeHTTP(w, r)
				return
			}
			body, _ := io.ReadAll(r.Body) // a short one would be refused
			detached := r.Clone(context.WithoutCancel(r.Context()))
			detached.Body = io.NopCloser(bytes.NewReader(body))
			running.Go(func() { h.ServeHTTP(httptest.NewRecorder(), detached) })
			panic(http.ErrAbortHandler)
		})
	})
	defer running.Wait()
	claim, err := c.Claim(t.Context(), order())
	must(t, err)
	must(t, claim.Settle(t.Context(), nil))
}

func TestARealGuardLetsEachStepBeRepeated(t *testing.T) {
	t.Parallel()
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := real(t, nil, losing)
			claim, err := c.Claim(t.Context(), order())
			must(t, err)
			must(t, end.call(t.Context(), claim))
			must(t, end.call(t.Context(), claim)) // and by its caller
			if key := oncemill.ProviderKey("guard", claim.ID()); claim.ProviderKey() != key {
				t.Errorf("the provider's key is %q, want %q", claim.ProviderKey(), key)
			}
		})
	}
}

func TestOneOfManyMakesTheEffect(t *testing.T) {
	t.Parallel()
	c := real(t, nil, losing)
	const agents = 8
	var made atomic.Int64
	results := make(chan string, agents)
	for range agents {
		go func() {
			for {
				result, err := c.Do(t.Context(), order(), func(context.Context) (json.RawMessage, error) {
					return json.RawMessage(fmt.Sprintf(`{"n":%d}`, made.Add(1))), nil
				})
				if !errors.Is(err, client.ErrInFlight) {
					results <- fmt.Sprintf("%s %v", result, err)
					return
				}
			}
		}()
	}
	for range agents {
		if got := <-results; got != `{"n":1} <nil>` {
			t.Errorf("somebody got %s", got)
		}
	}
	if n := made.Load(); n != 1 {
		t.Errorf("it was made %d times", n)
	}
}

func TestWhatARealGuardAnswers(t *testing.T) {
	t.Parallel()
	c := real(t, nil, nil)
	paid := order()
	paid.Payload = json.RawMessage(`{"amount": 452, "to": "ann"}`)
	claim, err := c.Claim(t.Context(), paid)
	must(t, err)
	_, err = c.Claim(t.Context(), paid)
	want(t, err, client.ErrInFlight)
	must(t, claim.Settle(t.Context(), json.RawMessage(`{"receipt":"r1"}`)))
	_, err = c.Claim(t.Context(), paid)
	if e := want(t, err, client.ErrSettled); string(e.Result) != `{"receipt":"r1"}` {
		t.Errorf("got %#v", e)
	}
	want(t, claim.Fail(t.Context(), "too late"), client.ErrSettled)
	other := paid
	other.Payload = json.RawMessage(`{"amount": 453, "to": "ann"}`)
	_, err = c.Claim(t.Context(), other)
	want(t, err, client.ErrKeyReused)

	declined := client.Request{ID: "order:8", Action: "charge"}
	_, err = c.Do(t.Context(), declined, func(context.Context) (json.RawMessage, error) { return nil, client.NeverWill(errProvider) })
	want(t, err, errProvider)
	_, err = c.Do(t.Context(), declined, never(t))
	if e := want(t, err, client.ErrFailed); e.Reason != errProvider.Error() {
		t.Errorf("got %#v", e)
	}

	notSent := client.Request{ID: "order:9", Action: "charge"}
	_, err = c.Do(t.Context(), notSent, func(context.Context) (json.RawMessage, error) { return nil, client.DidNotHappen(errProvider) })
	want(t, err, errProvider)
	_, err = c.Do(t.Context(), notSent, receipt)
	must(t, err)

	long := order()
	long.ID, long.Payload = "order:10", json.RawMessage(`"`+strings.Repeat("x", 70000)+`"`)
	_, err = c.Claim(t.Context(), long)
	wantText(t, want(t, err, client.ErrInvalid), "payload")
	claim, err = c.Claim(t.Context(), client.Request{ID: "order:11", Action: "charge"})
	must(t, err)
	wantText(t, want(t, claim.Settle(t.Context(), json.RawMessage(`[1]`)), client.ErrInvalid), "result")
}

func TestALeaseThatIsOverIsInDoubt(t *testing.T) {
	t.Parallel()
	c := real(t, nil, nil)
	r := order()
	r.Lease = 100 * time.Millisecond
	claim, err := c.Claim(t.Context(), r)
	must(t, err)
	for err = client.ErrInFlight; errors.Is(err, client.ErrInFlight); {
		_, err = c.Claim(t.Context(), r)
	}
	want(t, err, client.ErrInDoubt)
	for item, err := range c.Audit(t.Context(), client.AuditQuery{Status: "IN_DOUBT"}) {
		must(t, err)
		if item.ID != "order:7" || !item.InDoubt || item.Status != "PENDING" {
			t.Errorf("got %+v", item)
		}
	}
	want(t, claim.Extend(t.Context(), 0), client.ErrInDoubt)
	must(t, claim.Settle(t.Context(), nil)) // late, but nobody has taken it over
	_, err = c.Claim(t.Context(), r)
	want(t, err, client.ErrSettled)
}

func TestAnyIDIsSettledByARealGuard(t *testing.T) {
	t.Parallel()
	c := real(t, nil, nil)
	for _, id := range []string{
		"order/2026/1", "a b", "a%2Fb", "%", "%zz", "?q=1&x#y", "..", ".", "/", "a//b/../c", "é ☃", ";", "+", "a\nb", "\"", "\\", "~-_.", "\u202e",
	} {
		r := client.Request{ID: id, Action: "charge"}
		_, err := c.Do(t.Context(), r, receipt)
		must(t, err)
		_, err = c.Claim(t.Context(), r)
		want(t, err, client.ErrSettled)
	}
}

func TestTenantsHaveClaimsOfTheirOwn(t *testing.T) {
	t.Parallel()
	tenants, keys := withTenants(t, "acme", "other")
	c := real(t, tenants, nil)
	acme, other, stranger := *c, *c, *c
	acme.AuditToken, other.AuditToken, stranger.AuditToken = "", "", ""
	acme.APIKey, other.APIKey = keys[0], keys[1]
	stranger.APIKey = keys[0] + "x"
	must(t, acme.Check(t.Context()))
	must(t, c.Check(t.Context())) // the operator
	wantText(t, want(t, stranger.Check(t.Context()), client.ErrDenied), "Client.APIKey")
	stranger.APIKey, stranger.AuditToken = keys[0], "another-token-of-32-characters-or-more"
	wantText(t, want(t, stranger.Check(t.Context()), client.ErrDenied), "Client.AuditToken")

	for _, tenant := range []*client.Client{&acme, &other} {
		_, err := tenant.Do(t.Context(), order(), receipt)
		must(t, err)
		result, err := tenant.Do(t.Context(), order(), never(t))
		must(t, err)
		if string(result) != `{"receipt":"r1"}` {
			t.Errorf("the duplicate got %s", result)
		}
	}
	for reader, items := range map[*client.Client]int{&acme: 1, c: 2} {
		n := 0
		for item, err := range reader.Audit(t.Context(), client.AuditQuery{PageSize: 1}) {
			must(t, err)
			if n++; item.Status != "COMMITTED" || item.ID != "order:7" || item.Tenant != "acme" && items == 1 {
				t.Errorf("got %+v", item)
			}
		}
		if n != items {
			t.Errorf("the audit has %d claims, want %d", n, items)
		}
	}
}

func TestARealGuardShowsWhatHappened(t *testing.T) {
	t.Parallel()
	c := real(t, nil, nil)
	begun := time.Now().Add(-time.Minute)
	const orders = 5
	for n := range orders {
		r := client.Request{
			ID: fmt.Sprint("order:", n), Action: "buy", Agent: "bot-1", Amount: "452.00", Currency: "USD", Payload: json.RawMessage(`{"symbol":"TQQQ"}`),
		}
		_, err := c.Do(t.Context(), r, receipt)
		must(t, err)
		r.Agent = "bot-2"
		_, err = c.Do(t.Context(), r, never(t))
		must(t, err)
	}
	n := 0
	for item, err := range c.Audit(t.Context(), client.AuditQuery{Action: "buy", Agent: "bot-1", Status: "COMMITTED", From: begun, PageSize: 2}) {
		must(t, err)
		n++
		if item.ID != fmt.Sprint("order:", orders-n) || item.Amount != "452.00" || item.Currency != "USD" || string(item.Result) != `{"receipt":"r1"}` ||
			item.Attempt == 0 || item.ClaimedAt.Before(begun) || item.CommittedAt.Before(item.ClaimedAt) || !item.LeaseUntil.After(item.ClaimedAt) {
			t.Errorf("got %+v", item)
		}
	}
	if n != orders {
		t.Errorf("the audit has %d claims, want %d", n, orders)
	}
	n = 0
	for event, err := range c.Events(t.Context(), client.EventQuery{Kind: "blocked", Agent: "bot-2", MinAmount: "452", MaxAmount: "452", Currency: "USD", From: begun, PageSize: 2}) {
		must(t, err)
		n++
		if event.ID != fmt.Sprint("order:", orders-n) || event.Action != "buy" || event.Amount != "452.00" || event.At.Before(begun) || event.Number == 0 {
			t.Errorf("got %+v", event)
		}
	}
	if n != orders {
		t.Errorf("%d were blocked, want %d", n, orders)
	}
	for event, err := range c.Events(t.Context(), client.EventQuery{Kind: "claimed", ID: "order:3"}) {
		must(t, err)
		if string(event.Payload) != `{"symbol":"TQQQ"}` || event.Attempt == 0 {
			t.Errorf("got %+v", event)
		}
	}
	for _, err := range c.Events(t.Context(), client.EventQuery{Kind: "unheard of"}) {
		wantText(t, want(t, err, client.ErrInvalid), "kind")
	}
}
