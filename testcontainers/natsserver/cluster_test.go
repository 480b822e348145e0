package natsserver_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/testcontainers/natsserver"
)

func startCluster(t *testing.T, options natsserver.Options) *natsserver.Cluster {
	t.Helper()
	begun := time.Now()
	cluster, err := natsserver.StartCluster(t.Context(), 3, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("StartCluster: %v", time.Since(begun))
	t.Cleanup(func() {
		for i, node := range cluster.Nodes() {
			if text, err := node.Log(); t.Failed() {
				t.Logf("log of node %d: %v\n%s", i, err, text)
			}
		}
		if err := cluster.Close(); err != nil {
			t.Errorf("close the cluster: %v", err)
		}
	})
	return cluster
}

// replicated makes the stream effects with a replica on each node.
func replicated(t *testing.T, cluster *natsserver.Cluster) jetstream.JetStream {
	t.Helper()
	js := connect(t, strings.Join(cluster.URLs(), ","))
	_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "effects", Subjects: []string{"effects.>"}, Replicas: 3})
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func leader(t *testing.T, cluster *natsserver.Cluster) *natsserver.Server {
	t.Helper()
	begun := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	node, err := cluster.Leader(ctx, "effects")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("Leader: %v", time.Since(begun))
	return node
}

func healthy(t *testing.T, cluster *natsserver.Cluster) {
	t.Helper()
	begun := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := cluster.Healthy(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("Healthy: %v", time.Since(begun))
}

// publishAll publishes one message after the other, each again until it is
// acknowledged, until the returned function is called.
func publishAll(t *testing.T, js jetstream.JetStream) (acked *atomic.Uint64, stop func()) {
	t.Helper()
	acked = new(atomic.Uint64)
	ended := make(chan struct{})
	var stopping atomic.Bool
	go func() {
		defer close(ended)
		for !stopping.Load() {
			id := jetstream.WithMsgID(fmt.Sprint(acked.Load()))
			for {
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				_, err := js.Publish(ctx, "effects.x", nil, id)
				cancel()
				if err == nil {
					break
				}
				if js.Conn().IsClosed() { // the test has failed
					return
				}
				time.Sleep(10 * time.Millisecond) // while a leader is elected
			}
			acked.Add(1)
		}
	}()
	stop = func() { stopping.Store(true); <-ended }
	return acked, stop
}

func TestAReplicatedStreamLosesNothingWhenItsLeadersAreKilled(t *testing.T) {
	t.Parallel()
	cluster := startCluster(t, natsserver.Options{Volatile: true})
	js := replicated(t, cluster)
	acked, stop := publishAll(t, js)
	await := func(more uint64) {
		t.Helper()
		wanted := acked.Load() + more
		begun := time.Now()
		eventually(t, "messages are acknowledged", func() bool { return acked.Load() >= wanted })
		t.Logf("%d more are acknowledged: %v", more, time.Since(begun))
	}
	for range 3 {
		await(200)
		node := leader(t, cluster)
		if err := node.Kill(); err != nil {
			t.Fatal(err)
		}
		await(200) // by the other two
		if leader(t, cluster) == node {
			t.Error("a killed node is said to lead")
		}
		if err := node.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		healthy(t, cluster)
	}
	await(200)
	stop()
	if n := stored(t, js); n != acked.Load() {
		t.Errorf("%d messages are stored, want the %d that were acknowledged", n, acked.Load())
	}
	t.Logf("%d messages", acked.Load())
}

func TestAFrozenNodeIsBackOnceItIsThawed(t *testing.T) {
	t.Parallel()
	cluster := startCluster(t, natsserver.Options{})
	js := replicated(t, cluster)
	_, err := js.CreateConsumer(t.Context(), "effects", jetstream.ConsumerConfig{Durable: "billing", AckPolicy: jetstream.AckExplicitPolicy})
	if err != nil {
		t.Fatal(err)
	}
	healthy(t, cluster)
	node := leader(t, cluster)
	if err := node.Freeze(); err != nil {
		t.Fatal(err)
	}
	next := leader(t, cluster)
	if next == node {
		t.Error("a frozen node is said to lead")
	}
	js = connect(t, next.URL())
	publish(t, js, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := cluster.Healthy(ctx); err == nil {
		t.Error("a cluster with a frozen node is said to be healthy")
	}
	if err := node.Thaw(); err != nil {
		t.Fatal(err)
	}
	healthy(t, cluster)
	if leader(t, cluster) == node {
		t.Error("the node that was frozen still leads")
	}
	if n := stored(t, js); n != 1 {
		t.Errorf("%d messages are stored, not 1", n)
	}
}

func TestClientsOfAClusterLearnNoOtherAddress(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cluster := startCluster(t, natsserver.Options{Dir: dir, Config: "max_payload: 1KB\njetstream { sync_interval: always }"})
	conn := connect(t, cluster.URLs()[0]).Conn()
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	if others := conn.DiscoveredServers(); len(others) > 0 {
		t.Errorf("the client of one node has heard of %v", others)
	}
	for i, address := range cluster.URLs() {
		js := connect(t, address)
		if limit := js.Conn().MaxPayload(); limit != 1024 {
			t.Errorf("the largest payload of node %d is %d", i, limit)
		}
		if _, err := os.Stat(filepath.Join(dir, fmt.Sprintf("n%d", i+1), "jetstream")); err != nil {
			t.Errorf("a block jetstream in Config has moved its files: %v", err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := cluster.Leader(ctx, "no-such")
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), `the stream "no-such"`) {
		t.Errorf("the leader of no stream: %v", err)
	}
}

func TestAClusterThatCannotBeIsRefused(t *testing.T) {
	t.Parallel()
	for want, options := range map[string]natsserver.Options{
		"Options.Port":     {Port: 4222},
		"its log says":     {Config: "no such {"},
		"it takes 2, or r": {},
	} {
		nodes := 3
		if options == (natsserver.Options{}) {
			nodes = 1
		}
		if _, err := natsserver.StartCluster(t.Context(), nodes, options); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", options, err)
		}
	}
}
