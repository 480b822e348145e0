package jetstream_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/process"
)

// In a cluster the leader of a stream may be killed while the connection to
// another node stays: there are no reconnects, only silence and refusals.
func TestTheLeaderOfAStreamIsKilled(t *testing.T) {
	t.Parallel()
	servers, urls := startCluster(t)
	nc := connect(t, urls)
	js, err := natsjs.New(nc)
	must(t, err)
	until(t, "the stream is created", func() bool {
		// The cluster answers nobody before it has a leader.
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err = js.CreateStream(ctx, natsjs.StreamConfig{Name: "A", Subjects: []string{"a"}, Replicas: 3})
		return err == nil
	})
	sub := &jetstream.Subscriber{Conn: nc, Group: "g", AckWait: 5 * time.Second, DrainTimeout: time.Second, Logger: slog.New(slog.DiscardHandler)}
	t.Cleanup(func() { sub.Close() })
	messages, err := sub.Subscribe(t.Context(), "a")
	must(t, err)
	sink := &jetstream.Sink{Conn: nc}

	received := make(chan string, 1000)
	go func() {
		for msg := range messages {
			received <- msg.UUID
			msg.Ack()
		}
	}()
	kill := func() {
		stream, err := js.Stream(within(t), "A")
		must(t, err)
		must(t, servers[stream.CachedInfo().Cluster.Leader].Kill())
	}
	batch, seen := rows(200), make(map[string]bool)
	arrives := func(batch []outbox.Row) {
		until(t, "a batch is published", func() bool { return errors.Join(publish(sink, batch)...) == nil })
		for wanted := len(seen) + len(batch); len(seen) < wanted; {
			select {
			case uuid := <-received:
				seen[uuid] = true
			case <-time.After(2 * patience):
				t.Fatalf("%d messages of %d", len(seen), wanted)
			}
		}
	}
	arrives(batch[:100])
	kill()
	arrives(batch[100:])
	stream, err := js.Stream(within(t), "A")
	must(t, err)
	if n := stream.CachedInfo().State.Msgs; n != 200 {
		t.Errorf("%d messages are stored", n)
	}
	kill()
	for _, err := range publish(sink, rows(3)) { // one of three cannot elect a leader
		if !errors.Is(err, outbox.ErrUnavailable) {
			t.Errorf("without a leader: %v", err)
		}
	}
}

// publish has a relay's patience.
func publish(sink *jetstream.Sink, batch []outbox.Row) []error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	return sink.PublishBatch(ctx, batch)
}

func startCluster(t *testing.T) (servers map[string]*testcontainers.NATSServer, urls string) {
	t.Helper()
	var ports [3]int
	var routes []string
	for i := range ports {
		var err error
		ports[i], err = process.FreePort()
		must(t, err)
		routes = append(routes, fmt.Sprintf(`"nats://127.0.0.1:%d"`, ports[i]))
	}
	servers = make(map[string]*testcontainers.NATSServer)
	var addresses []string
	for i, port := range ports {
		name := fmt.Sprint("n", i)
		server, err := testcontainers.StartNATS(within(t), testcontainers.NATSOptions{Config: fmt.Sprintf(
			"server_name: %s\ncluster { name: c, listen: \"127.0.0.1:%d\", routes: [%s] }", name, port, strings.Join(routes, ", "))})
		must(t, err)
		t.Cleanup(func() { must(t, server.Close()) })
		servers[name] = server
		addresses = append(addresses, server.URL())
	}
	return servers, strings.Join(addresses, ",")
}

func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * patience); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}
