package natsserver_test

import (
	"context"
	"fmt"
	"log"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/testcontainers/natsserver"
)

// A JetStream server inside this process.
func ExampleEmbed() {
	server, err := natsserver.Embed()
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()

	conn, err := nats.Connect(server.URL())
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		log.Fatal(err)
	}
	stream, err := js.CreateStream(context.Background(), jetstream.StreamConfig{Name: "orders"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(stream.CachedInfo().Config.Name)
	// Output: orders
}

// A server that crashes and is started again, on the same port.
func ExampleServer_Kill() {
	ctx := context.Background()
	server, err := natsserver.Start(ctx, natsserver.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	before := server.URL()
	if err := server.Kill(); err != nil {
		log.Fatal(err)
	}
	fmt.Println("running:", server.Running())
	if err := server.Start(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println("running:", server.Running(), "same address:", server.URL() == before)
	// Output:
	// running: false
	// running: true same address: true
}

// A cluster whose leader crashes, and which goes on with another.
func ExampleCluster() {
	ctx := context.Background()
	cluster, err := natsserver.StartCluster(ctx, 3, natsserver.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer cluster.Close()

	conn, err := nats.Connect(strings.Join(cluster.URLs(), ","), nats.MaxReconnects(-1))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "orders", Replicas: 3}); err != nil {
		log.Fatal(err)
	}
	leader, err := cluster.Leader(ctx, "orders")
	if err != nil {
		log.Fatal(err)
	}
	if err := leader.Kill(); err != nil {
		log.Fatal(err)
	}
	next, err := cluster.Leader(ctx, "orders")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("another leads:", next != leader)
	if err := leader.Start(ctx); err != nil {
		log.Fatal(err)
	}
	if err := cluster.Healthy(ctx); err != nil { // it has what it has missed
		log.Fatal(err)
	}
	// Output: another leads: true
}
