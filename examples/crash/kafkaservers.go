package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/consumers/kafka"
	"github.com/oncemill/oncemill/testcontainers/kafkaserver"
)

const partitions = 6 // of each topic

// A node is the Kafka server. The client leads to it by no line.
type node struct {
	*kafkaserver.Server
	client *kgo.Client
	admin  *kadm.Client
}

func startKafka(ctx context.Context, out io.Writer) (servers, error) {
	java, err := kafkaserver.FindJava(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := kafkaserver.Fetch(ctx, out); err != nil {
		return nil, err
	}
	fmt.Fprintf(out, "Starting Apache Kafka %s, one node.\n", kafkaserver.Version)
	server, err := kafkaserver.Start(ctx, kafkaserver.Options{Java: java})
	if err != nil {
		return nil, err
	}
	client, err := kgo.NewClient(append(inAHurry(), kgo.SeedBrokers(server.Broker()))...)
	if err != nil {
		return nil, errors.Join(err, server.Close())
	}
	return &node{server, client, kadm.NewClient(client)}, nil
}

func (n *node) addresses() []string { return []string{n.Broker()} }

// createTopics makes one replica of each: there is one node.
func (n *node) createTopics(ctx context.Context, _ int) error {
	topics := slices.Concat(work, downstream, []string{deadLetters})
	created, err := n.admin.CreateTopics(ctx, partitions, 1, nil, topics...)
	if err := errors.Join(err, created.Error()); err != nil {
		return err
	}
	return n.ready(ctx)
}

// ready waits until all partitions and groups can be asked about. After its start the node
// takes a moment for that, and the first time it has to create the topic of the offsets.
func (n *node) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		_, err := n.pending(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

// pending asks first for what is committed: where that is the end, nothing was waiting when
// it was asked for.
func (n *node) pending(ctx context.Context) (left int, err error) {
	topics := slices.Concat(work, downstream)
	handled := make(map[string]kadm.OffsetResponses)
	for _, topic := range topics {
		group := groupOf(topic)
		handled[topic], err = n.admin.FetchOffsetsForTopics(ctx, group, topic)
		if err := errors.Join(err, handled[topic].Error()); err != nil {
			return 0, fmt.Errorf("look up the offsets of group %s in topic %s: %w", group, topic, err)
		}
	}
	ends, err := n.ends(ctx, topics...)
	if err != nil {
		return 0, err
	}
	ends.Each(func(end kadm.ListedOffset) {
		committed, _ := handled[end.Topic].Lookup(end.Topic, end.Partition) // At is -1 before the first commit
		left += int(end.Offset - max(committed.At, 0))
	})
	return left, nil
}

func (n *node) ends(ctx context.Context, topics ...string) (kadm.ListedOffsets, error) {
	ends, err := n.admin.ListEndOffsets(ctx, topics...)
	if err := errors.Join(err, ends.Error()); err != nil {
		return nil, fmt.Errorf("look up the ends of the topics: %w", err)
	}
	return ends, nil
}

// read returns one partition after the other. A key is in one partition, so the order of
// each key is that of the topic.
func (n *node) read(ctx context.Context, topic string) ([]delivered, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	ends, err := n.ends(ctx, topic)
	if err != nil {
		return nil, err
	}
	left := 0
	ends.Each(func(end kadm.ListedOffset) { left += int(end.Offset) }) // they begin with 0
	reader, err := kgo.NewClient(append(n.client.Opts(), kgo.ConsumeTopics(topic))...)
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	all := make([][]delivered, partitions)
	for left > 0 {
		fetches := reader.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return nil, err
		}
		fetches.EachRecord(func(r *kgo.Record) {
			all[r.Partition] = append(all[r.Partition], delivered{uuid: headerOf(r, consumers.DeadUUID, kafka.UUIDHeader), payload: string(r.Value)})
			left--
		})
	}
	return slices.Concat(all...), nil
}

// headerOf returns the first of some headers that a record has.
func headerOf(r *kgo.Record, names ...string) string {
	for _, name := range names {
		for _, h := range r.Headers {
			if h.Key == name {
				return string(h.Value)
			}
		}
	}
	return ""
}

func (n *node) close() error {
	n.client.Close()
	return n.Close()
}

func (n *node) faults() []fault {
	return []fault{
		{"Kafka killed", "broker", func(ctx context.Context, s *strike) (string, error) {
			if err := n.Kill(); err != nil {
				return "", err
			}
			s.pause(ctx, 200*time.Millisecond, 2*time.Second)
			ctx = context.WithoutCancel(ctx)
			if err := n.Start(ctx); err != nil {
				return "", err
			}
			return "the node is killed, and started again", n.ready(ctx)
		}},
		{"Kafka frozen", "broker", func(ctx context.Context, s *strike) (string, error) {
			if err := n.Freeze(); err != nil {
				return "", err
			}
			s.pause(ctx, 500*time.Millisecond, 4*time.Second)
			if err := n.Thaw(); err != nil {
				return "", err
			}
			return "the node was frozen", n.ready(context.WithoutCancel(ctx))
		}},
	}
}
