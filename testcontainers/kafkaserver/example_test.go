package kafkaserver_test

import (
	"context"
	"fmt"
	"log"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oncemill/oncemill/testcontainers/kafkaserver"
)

// A server that crashes and is started again, on the same port.
func ExampleServer_Kill() {
	ctx := context.Background()
	server, err := kafkaserver.Start(ctx, kafkaserver.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	client, err := kgo.NewClient(kgo.SeedBrokers(server.Broker()))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	if err := server.Kill(); err != nil {
		log.Fatal(err)
	}
	fmt.Println("running:", server.Running())
	if err := server.Start(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println("running:", server.Running(), "answers:", client.Ping(ctx) == nil)
}
