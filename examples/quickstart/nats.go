package main

import (
	"context"

	"github.com/oncemill/oncemill/testcontainers/natsserver"
)

// serveNATS is the broker: nats-server, embedded in this process.
func serveNATS(ctx context.Context, _ setting) error {
	server, err := natsserver.Embed()
	if err != nil {
		return err
	}
	say(server.URL())
	<-ctx.Done()
	return server.Close()
}
