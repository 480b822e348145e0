package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/examples/internal/streams"
	"github.com/oncemill/oncemill/testcontainers/natsserver"
)

const natsNodes = 3

// A cluster is the NATS servers. Each stream is on all of them.
type cluster struct {
	*natsserver.Cluster
	conn *streams.Broker
}

func startNATS(ctx context.Context, out io.Writer) (servers, error) {
	fmt.Fprintf(out, "Starting a NATS cluster of %d nodes.\n", natsNodes)
	c, err := natsserver.StartCluster(ctx, natsNodes, natsserver.Options{})
	if err != nil {
		return nil, err
	}
	conn, err := streams.ConnectAll(c.URLs())
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return &cluster{c, conn}, nil
}

func (c *cluster) addresses() (all []string) {
	for _, url := range c.URLs() {
		all = append(all, strings.TrimPrefix(url, "nats://"))
	}
	return all
}

// The streams, and the topics in them. Children are in one, so that a dedup id that is not
// of one topic alone would be seen.
var natsStreams = map[string][]string{"work": work, "events": append([]string{deadLetters}, downstream...)}

func (c *cluster) createTopics(ctx context.Context, replicas int) error {
	for name, subjects := range natsStreams {
		config := natsjs.StreamConfig{Name: name, Subjects: subjects, Replicas: cmp.Or(replicas, natsNodes), Duplicates: 2 * time.Minute}
		if _, err := c.conn.JetStream().CreateStream(ctx, config); err != nil {
			return err
		}
	}
	return c.Healthy(ctx)
}

// groupOf returns who consumes a topic.
func groupOf(topic string) string {
	switch topic {
	case single, batch, charges, mails:
		return topic
	}
	return roleDownstream
}

func (c *cluster) pending(ctx context.Context) (n int, err error) {
	for name, topics := range natsStreams {
		for _, topic := range topics {
			if topic == deadLetters {
				continue
			}
			consumer, err := c.conn.JetStream().Consumer(ctx, name, groupOf(topic)+"~"+topic)
			if err != nil {
				return n, fmt.Errorf("look up the consumer of %s: %w", topic, err)
			}
			info := consumer.CachedInfo()
			n += int(info.NumPending) + info.NumAckPending
		}
	}
	return n, nil
}

func (c *cluster) read(ctx context.Context, topic string) (all []delivered, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	consumer, err := c.conn.JetStream().OrderedConsumer(ctx, "events", natsjs.OrderedConsumerConfig{FilterSubjects: []string{topic}})
	if err != nil {
		return nil, err
	}
	left := int(consumer.CachedInfo().NumPending)
	reader, err := consumer.Messages()
	if err != nil {
		return nil, err
	}
	defer reader.Stop()
	for len(all) < left {
		msg, err := reader.Next(natsjs.NextContext(ctx))
		if err != nil {
			return nil, err
		}
		uuid := cmp.Or(msg.Headers().Get(consumers.DeadUUID), msg.Headers().Get(jetstream.UUIDHeader))
		all = append(all, delivered{uuid: uuid, payload: string(msg.Data())})
	}
	return all, nil
}

func (c *cluster) close() error {
	c.conn.Close()
	return c.Close()
}

func (c *cluster) faults() []fault {
	return []fault{
		{"NATS node killed", "broker", func(ctx context.Context, s *strike) (string, error) {
			node := s.draws.IntN(natsNodes)
			return fmt.Sprintf("node %d is killed, and started again", node+1), c.killed(ctx, s, c.Nodes()[node])
		}},
		{"NATS leader killed", "broker", func(ctx context.Context, s *strike) (string, error) {
			stream := []string{"work", "events"}[s.draws.IntN(2)]
			node, err := c.Leader(ctx, stream)
			if err != nil {
				return "", err
			}
			return "the leader of stream " + stream + " is killed, and started again", c.killed(ctx, s, node)
		}},
		{"NATS node frozen", "broker", func(ctx context.Context, s *strike) (string, error) {
			node := s.draws.IntN(natsNodes)
			if err := c.Nodes()[node].Freeze(); err != nil {
				return "", err
			}
			s.pause(ctx, 500*time.Millisecond, 4*time.Second)
			return fmt.Sprintf("node %d was frozen", node+1), errors.Join(c.Nodes()[node].Thaw(), c.healthy(ctx))
		}},
	}
}

// killed kills a node, and starts it again after a while. No two are away at a time: two of
// three are needed.
func (c *cluster) killed(ctx context.Context, s *strike, node *natsserver.Server) error {
	if err := node.Kill(); err != nil {
		return err
	}
	s.pause(ctx, 200*time.Millisecond, 2*time.Second)
	return errors.Join(node.Start(context.WithoutCancel(ctx)), c.healthy(ctx))
}

// healthy waits until all nodes have all that there is.
func (c *cluster) healthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	return c.Healthy(ctx)
}
