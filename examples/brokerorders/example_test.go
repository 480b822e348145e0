package brokerorders_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/payment"
	"github.com/oncemill/oncemill/examples/brokerorders"
)

// The answer to the order is a 503. Whether it was placed, the broker says when it is
// asked by the order's id.
func ExampleProvider() {
	server, err := brokerorders.Start(brokerorders.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	broker := &brokerorders.Provider{URL: server.URL(), Token: brokerorders.DefaultToken}
	id := oncemill.ProviderKey("trading", "signal-7")
	server.Script(id, brokerorders.Unavailable)

	order := payment.Request{Kind: brokerorders.Buy, Metadata: map[string]string{brokerorders.Symbol: "AAPL", brokerorders.Quantity: "2"}}
	_, err = broker.Execute(context.Background(), id, order)
	fmt.Println("known:", oncemill.VerdictOf(err) != oncemill.Unknown)
	_, err = broker.Find(context.Background(), payment.Search{Key: id})
	fmt.Println("placed:", !errors.Is(err, payment.ErrNotFound))
	receipt, err := broker.Execute(context.Background(), id, order)
	fmt.Println(receipt.Status, err)
	// Output:
	// known: false
	// placed: false
	// accepted <nil>
}
