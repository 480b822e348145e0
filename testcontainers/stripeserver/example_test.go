package stripeserver_test

import (
	"context"
	"fmt"
	"log"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/payment"
	"github.com/oncemill/oncemill/testcontainers/stripeserver"
)

// The reply to the first request is lost. The second one, with the same key, is told
// what happened, and nothing is paid twice.
func ExampleStart() {
	server, err := stripeserver.Start(stripeserver.Options{Faults: func(c stripeserver.Call) stripeserver.Fault {
		if c.Nth == 1 {
			return stripeserver.CutAfter
		}
		return stripeserver.None
	}})
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	stripe := &payment.Stripe{APIKey: stripeserver.DefaultAPIKey, BaseURL: server.URL()}
	defer stripe.Close()

	order := payment.Request{Amount: 1050, Currency: "usd", PaymentMethod: "pm_card_visa"}
	for range 2 {
		receipt, err := stripe.Execute(context.Background(), "om-1", order)
		fmt.Printf("%q %q, ledger: %d\n", oncemill.VerdictOf(err), receipt.Status, len(server.Ledger()))
	}
	// Output:
	// "" "", ledger: 1
	// "happened" "succeeded", ledger: 1
}

func ExampleRandom() {
	lines := stripeserver.Random{Seed: 3, Rates: map[stripeserver.Fault]float64{
		stripeserver.CutAfter: 0.25, stripeserver.ErrorAfter: 0.25,
	}}
	counts := map[stripeserver.Fault]int{}
	for i := range 1000 {
		counts[lines.Choose(stripeserver.Call{Key: fmt.Sprint(i), Nth: 1})]++
	}
	fmt.Println(counts[stripeserver.CutAfter] > 200, counts[stripeserver.ErrorAfter] > 200, counts[stripeserver.None] > 400)
	// Output: true true true
}
