package effects_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"
)

// consumer is in whose name keys are claimed.
const consumer = "orders"

// guard returns the Guard of the actor's policy, as a user would set it up.
func (a *performer) guard() middleware.Guard {
	inbox := &oncemill.Inbox{
		DB:           a.db,
		DrainTimeout: 3 * time.Second,
		Observer: &oncemill.Observer{
			Committed: func(_ context.Context, _, key string, _ time.Duration) {
				a.Say("settled %s", key)
				a.opportunity(dieBeforeAck, key)
			},
			Duplicate: func(_ context.Context, _, key string) { a.Say("duplicate %s", key) },
			InDoubt:   func(_ context.Context, _, key, reason string) { a.Say("doubt %s %q", key, reason) },
			Resolved:  func(_ context.Context, _, key string, v oncemill.Verdict) { a.Say("resolved %s %s", key, v) },
			Failed:    func(_ context.Context, err *oncemill.Error) { a.Say("failed %s %s %q", err.Op, err.Key, err.Err) },
		},
	}
	guard := middleware.Guard{Inbox: inbox, Consumer: consumer, Lease: a.Lease, KeyLifetime: a.KeyLifetime}
	if a.Policy == queryable {
		client := a.client()
		guard.Ask = func(ctx context.Context, d oncemill.InDoubt) (oncemill.Resolution, error) {
			return a.ask(ctx, client, d)
		}
		guard.LandingBound, guard.Backoff = a.LandingBound, 100*time.Millisecond
	}
	return guard
}

func (a *performer) resolver(guard middleware.Guard) *oncemill.Resolver {
	r := guard.Resolver()
	r.Timeout, r.Poll, r.Concurrency, r.MostBackoff = a.AskTimeout, 50*time.Millisecond, 8, 400*time.Millisecond
	return r
}

// work is the role of a worker: a router as a user would set it up.
func (a *performer) work(ctx context.Context) error {
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NewSlogLogger(slog.Default()))
	if err != nil {
		return err
	}
	guard := a.guard()
	if err := (consumers.Stack{Guard: &guard, MaxErrors: a.MaxErrors}).Apply(ctx, router); err != nil {
		return err
	}
	subscriber := &jetstream.Subscriber{
		Conn: a.nc, Group: consumer, MaxInFlight: a.MaxInFlight, AckWait: ackWait,
		NakDelay: func(attempt uint64) time.Duration { return min(50*time.Millisecond<<min(attempt, 5), time.Second) },
	}
	router.AddHandler(consumer, a.Topic, subscriber, a.Receipts, &outbox.Publisher{}, a.handler())
	if a.Policy == queryable && !a.Mute {
		resolved := make(chan error, 1)
		resolving, stop := context.WithCancel(ctx)
		defer func() { stop(); <-resolved }()
		go func() { resolved <- a.resolver(guard).Run(resolving) }()
	}
	go func() {
		<-router.Running()
		a.Say("running")
	}()
	return router.Run(ctx)
}

// client keeps its connections, as clients do.
func (a *performer) client() *http.Client {
	transport := &http.Transport{
		MaxIdleConnsPerHost: a.MaxInFlight,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, address)
			return requestConn{conn, a}, err
		},
	}
	return &http.Client{Transport: transport}
}

var errTooLate = errors.New("the lease is over, and nothing was begun")

// handler makes an effect at the provider.
func (a *performer) handler() message.HandlerFunc {
	client := a.client()
	return func(msg *message.Message) ([]*message.Message, error) {
		claim, ok := oncemill.ClaimFromContext(msg.Context())
		if !ok {
			return nil, oncemill.ErrNoClaim
		}
		a.opportunity(dieAfterClaim, msg.UUID)
		a.opportunity(freezeAfterClaim, msg.UUID)
		if time.Now().After(claim.Deadline()) {
			return nil, oncemill.DidNotHappen(errTooLate)
		}
		receipt, err := a.effect(msg.Context(), client, claim, msg.Payload)
		if err != nil {
			return nil, err
		}
		a.Say("replied %s", msg.UUID)
		a.opportunity(dieAfterReply, msg.UUID)
		a.opportunity(freezeAfterReply, msg.UUID)
		claim.SetResult(receipt)
		claim.OnSettle(a.receipt(msg.UUID, receipt))
		return []*message.Message{message.NewMessage(watermill.NewUUID(), msg.Payload)}, nil
	}
}

// receipt writes the row that belongs to an effect.
func (a *performer) receipt(key string, receipt []byte) func(context.Context, oncemill.Tx) error {
	return func(ctx context.Context, tx oncemill.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO receipts (key, receipt, worker) VALUES ($1, $2, $3)`, key, string(receipt), a.Name)
		return err
	}
}

// effect asks the provider for the effect, once, and says what became of it.
func (a *performer) effect(ctx context.Context, client *http.Client, claim *oncemill.Claim, payload []byte) (receipt []byte, err error) {
	var connected atomic.Bool // then something may have been written, also by an earlier try of net/http's
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn:              func(httptrace.GotConnInfo) { connected.Store(true) },
		GotFirstResponseByte: func() { a.opportunity(dieAfterExecution, claim.Key()) },
	})
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, a.Provider+"/effects", strings.NewReader(string(payload)))
	if err != nil {
		return nil, oncemill.DidNotHappen(err)
	}
	request.Header.Set(a.Policy.header(), claim.ProviderKey())
	request.Header.Set(untilHeader, time.Now().Add(time.Until(claim.Deadline())).Format(time.RFC3339Nano))
	response, err := client.Do(request)
	switch {
	case err != nil && !connected.Load():
		return nil, oncemill.ProviderAway(err)
	case err != nil:
		return nil, err
	}
	defer response.Body.Close()
	receipt, err = io.ReadAll(response.Body)
	switch {
	case err != nil:
		return nil, err
	case response.StatusCode == http.StatusPaymentRequired:
		return nil, oncemill.NeverWill(errors.New("declined"))
	case response.StatusCode/100 != 2:
		return nil, fmt.Errorf("the provider answers %s", response.Status) // which proves nothing
	}
	return receipt, nil
}

// ask asks the provider what became of an effect.
func (a *performer) ask(ctx context.Context, client *http.Client, d oncemill.InDoubt) (oncemill.Resolution, error) {
	a.Say("asking %s", d.Key)
	a.opportunity(dieAsking, d.Key)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, a.Provider+"/effects/"+d.ProviderKey(), nil)
	if err != nil {
		return oncemill.Resolution{}, err
	}
	response, err := client.Do(request)
	if err != nil {
		return oncemill.Resolution{}, err
	}
	defer response.Body.Close()
	receipt, err := io.ReadAll(response.Body)
	a.opportunity(freezeAsking, d.Key)
	switch {
	case err != nil:
		return oncemill.Resolution{}, err
	case response.StatusCode == http.StatusOK:
		return oncemill.Resolution{Verdict: oncemill.Happened, Result: receipt, Settle: a.receipt(d.Key, receipt)}, nil
	case response.StatusCode == http.StatusNotFound:
		return oncemill.Resolution{Verdict: oncemill.NotHappened, Note: "not at the provider"}, nil
	case response.StatusCode == http.StatusGone:
		return oncemill.Resolution{Verdict: oncemill.Never, Note: "declined"}, nil
	}
	return oncemill.Resolution{}, fmt.Errorf("the provider answers %s", response.Status)
}

// relay is the role of a relay.
func (a *performer) relay(ctx context.Context) error {
	relay := &outbox.Relay{DB: a.db, Sink: &jetstream.Sink{Conn: a.nc}, PollInterval: 50 * time.Millisecond}
	a.Say("running")
	return relay.Run(ctx)
}
