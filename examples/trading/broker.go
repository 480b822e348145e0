package main

import (
	"context"
	"fmt"

	"github.com/oncemill/oncemill/examples/brokerorders"
)

// serveBroker plays the broker until ctx ends.
func serveBroker(ctx context.Context, addr string) error {
	server, err := brokerorders.Start(brokerorders.Options{Addr: addr})
	if err != nil {
		return err
	}
	fmt.Printf("BROKER_URL=%s BROKER_TOKEN=%s\n", server.URL(), brokerorders.DefaultToken)
	<-ctx.Done()
	return server.Close()
}
