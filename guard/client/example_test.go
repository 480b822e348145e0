package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/oncemill/oncemill/guard/client"
)

// An agent that pays an invoice, once, whoever else sets out to do it.
func Example() {
	ctx := context.Background()
	guard := &client.Client{URL: "https://guard.example.com", APIKey: os.Getenv("GUARD_API_KEY")}
	if err := guard.Check(ctx); err != nil {
		log.Fatal(err)
	}
	receipt, err := guard.Do(ctx, client.Request{ID: "invoice:7:pay", Action: "pay", Agent: "bot-1", Amount: "452.00", Currency: "USD"},
		func(ctx context.Context) (json.RawMessage, error) {
			id, err := pay(ctx, 7)
			switch {
			case errors.Is(err, errDeclined):
				return nil, client.NeverWill(err)
			case errors.Is(err, errNotConnected):
				return nil, client.DidNotHappen(err)
			case err != nil:
				return nil, err // nobody knows: in doubt
			}
			return json.Marshal(map[string]string{"payment": id})
		})
	switch {
	case errors.Is(err, client.ErrInFlight):
		fmt.Println("another is paying it at this moment")
	case errors.Is(err, client.ErrInDoubt):
		fmt.Println("nobody knows whether it is paid: an operator has to look")
	case err != nil:
		log.Fatal(err)
	default:
		fmt.Printf("it is paid, now or earlier: %s\n", receipt)
	}
}

// The single steps, where an effect does not fit into a function.
func ExampleClient_Claim() {
	ctx := context.Background()
	guard := &client.Client{URL: "http://127.0.0.1:8080"}
	claim, err := guard.Claim(ctx, client.Request{ID: "order:TQQQ:buy:6", Action: "buy", Lease: time.Minute})
	var held *client.Error
	switch {
	case errors.Is(err, client.ErrSettled) && errors.As(err, &held):
		fmt.Printf("it has been bought: %s\n", held.Result)
		return
	case err != nil:
		log.Fatal(err) // nothing may be bought
	}
	id, err := buy(ctx, claim.Deadline())
	if err != nil {
		log.Fatal(err) // in doubt when the minute is over
	}
	if err := claim.Settle(ctx, json.RawMessage(`{"order":"`+id+`"}`)); err != nil {
		log.Fatal(err) // it has been bought; Settle may be called again
	}
}

// An effect of which it is not known how long it will take.
func ExampleClaimFromContext() {
	ctx := context.Background()
	guard := &client.Client{URL: "http://127.0.0.1:8080"}
	_, err := guard.Do(ctx, client.Request{ID: "payroll:2026-05", Action: "payroll"}, func(ctx context.Context) (json.RawMessage, error) {
		claim, _ := client.ClaimFromContext(ctx) // there is one in Do
		for n := range 1000 {
			if _, err := pay(ctx, n); err != nil {
				return nil, err
			}
			if n%100 == 0 {
				if err := claim.Extend(ctx, 5*time.Minute); err != nil {
					return nil, err
				}
			}
		}
		return nil, nil
	})
	if err != nil {
		log.Fatal(err)
	}
}

// What was asked for again, and was not done a second time.
func ExampleClient_Events() {
	ctx := context.Background()
	guard := &client.Client{URL: "http://127.0.0.1:8080", AuditToken: os.Getenv("GUARD_AUDIT_TOKEN")}
	for event, err := range guard.Events(ctx, client.EventQuery{Kind: "blocked", From: time.Now().Add(-24 * time.Hour)}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(event.At, event.ID, event.Amount, event.Currency, event.Note)
	}
}

// What has to be looked at.
func ExampleClient_Audit() {
	ctx := context.Background()
	guard := &client.Client{URL: "http://127.0.0.1:8080", AuditToken: os.Getenv("GUARD_AUDIT_TOKEN")}
	for claim, err := range guard.Audit(ctx, client.AuditQuery{Status: "IN_DOUBT"}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(claim.ID, claim.ClaimedAt, claim.Reason)
	}
}

var (
	errDeclined     = errors.New("declined")
	errNotConnected = errors.New("not connected")
)

// pay and buy are what a provider's own package does.
func pay(context.Context, int) (string, error)       { return "p1", nil }
func buy(context.Context, time.Time) (string, error) { return "o1", nil }
