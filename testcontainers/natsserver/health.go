package natsserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	pause       = 20 * time.Millisecond // between one question and the next
	answerLimit = 2 * time.Second       // for one answer; a frozen node gives none
)

// repeat calls ask until it returns nil, or ctx ends.
func repeat(ctx context.Context, ask func(context.Context) error) error {
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w, last: %w", context.Cause(ctx), err)
		case <-time.After(pause):
		}
	}
}

// leader returns the node that leads a stream. One that was frozen and has not
// noticed that another leads now is told by the word of the others.
func (c *Cluster) leader(ctx context.Context, stream string) (*Server, error) {
	var found *Server
	leaders := map[string]bool{} // that somebody names
	for i, node := range c.nodes {
		var info server.JSInfo
		if !node.Running() || c.ask(ctx, i, "jsz?streams=true", &info) != nil {
			continue // it may have been killed or frozen just now
		}
		group := groups(&info)["the stream "+stream]
		if group == nil {
			continue
		}
		leaders[group.Leader] = true
		if group.Leader == name(i) {
			found = node
		}
	}
	switch {
	case len(leaders) == 0:
		return nil, errors.New("no node that answers has it")
	case len(leaders) > 1:
		return nil, errors.New("the nodes do not agree")
	case found == nil:
		return nil, errors.New("no node that answers leads it")
	}
	return found, nil
}

// Healthy waits until every node that runs is back in: it says that it is well,
// the replicas that it has of streams and consumers are up to date, and all agree
// on who leads them. A node that was killed and not started is not waited for; a
// frozen one is.
func (c *Cluster) Healthy(ctx context.Context) error {
	err := repeat(ctx, func(ctx context.Context) error {
		leaders := map[string]string{}
		for i, node := range c.nodes {
			if !node.Running() {
				continue
			}
			if err := c.well(ctx, i, leaders); err != nil {
				return fmt.Errorf("node %s: %w", name(i), err)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("wait for a healthy cluster: %w", err)
	}
	return nil
}

// well tells whether a node says that it is, and whether those agree that follow
// what it leads. leaders are those that other nodes have named.
func (c *Cluster) well(ctx context.Context, node int, leaders map[string]string) error {
	var health server.HealthStatus
	if err := c.ask(ctx, node, "healthz", &health); err != nil {
		return err
	}
	if health.Status != "ok" {
		return fmt.Errorf("it says %q: %s", health.Status, health.Error)
	}
	var info server.JSInfo
	if err := c.ask(ctx, node, "jsz?streams=true&consumers=true", &info); err != nil {
		return err
	}
	for what, cluster := range groups(&info) {
		switch before := leaders[what]; {
		case cluster.Leader == "":
			return fmt.Errorf("%s has no leader", what)
		case before != "" && before != cluster.Leader:
			return fmt.Errorf("the leader of %s is %s, and for another node it is %s", what, cluster.Leader, before)
		}
		leaders[what] = cluster.Leader
		if cluster.Leader != name(node) {
			continue // its leader knows
		}
		if err := c.current(what, cluster); err != nil {
			return err
		}
	}
	return nil
}

// groups returns those who hold each of the streams and consumers of a node.
func groups(info *server.JSInfo) map[string]*server.ClusterInfo {
	all := map[string]*server.ClusterInfo{}
	for _, account := range info.AccountDetails {
		for _, stream := range account.Streams {
			if stream.Cluster != nil {
				all["the stream "+stream.Name] = stream.Cluster
			}
			for _, consumer := range stream.Consumer {
				if consumer.Cluster != nil {
					all["the consumer "+consumer.Name+" of the stream "+stream.Name] = consumer.Cluster
				}
			}
		}
	}
	return all
}

// current tells whether the running replicas of something are up to date.
func (c *Cluster) current(what string, cluster *server.ClusterInfo) error {
	for _, replica := range cluster.Replicas {
		if c.runs(replica.Name) && !replica.Current {
			return fmt.Errorf("the replica of %s on %s is not current", what, replica.Name)
		}
	}
	return nil
}

func (c *Cluster) runs(replica string) bool {
	for i, node := range c.nodes {
		if name(i) == replica {
			return node.Running()
		}
	}
	return false
}

// formed waits until a stream with a replica on each node can be made. A leader
// that hears from the others does not place anything on them before they have
// told it of their storage, which shows only when it is tried.
func (c *Cluster) formed(ctx context.Context) error {
	if err := c.Healthy(ctx); err != nil {
		return err
	}
	conn, err := nats.Connect(strings.Join(c.URLs(), ","))
	if err != nil {
		return err
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	const most = 5 // replicas that a stream can have
	probe := jetstream.StreamConfig{Name: "oncemill-probe", Replicas: min(len(c.nodes), most), Storage: jetstream.MemoryStorage}
	return repeat(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, answerLimit)
		defer cancel()
		if _, err := js.CreateOrUpdateStream(ctx, probe); err != nil {
			return err
		}
		return js.DeleteStream(ctx, probe.Name)
	})
}

// ask asks a node's monitor.
func (c *Cluster) ask(ctx context.Context, node int, what string, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	address := fmt.Sprintf("http://127.0.0.1:%d/%s", c.monitors[node], what)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	request.Close = true // the node may be killed next
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	return json.NewDecoder(response.Body).Decode(answer)
}
