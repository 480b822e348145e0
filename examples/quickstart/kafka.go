package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oncemill/oncemill/consumers/kafka"
	"github.com/oncemill/oncemill/examples/internal/crew"
	"github.com/oncemill/oncemill/examples/internal/streams"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/testcontainers/kafkaserver"
)

var kafkaBrand = &brand{
	title:   "Apache Kafka",
	find:    findKafka,
	connect: connectKafka,
	// While one is cut off the other goes on.
	workers: 2,
	// Offsets are committed ten times a second. If the orders of a small run came all
	// at once, it would be over before enough has gone wrong.
	spread: 5 * time.Second,
	lost:   kind{saysLostCommit, "lost offset commits", "offset commits lost, with the connection to Kafka"},
	killed: "workers killed after COMMIT, before offset commit",
}

const (
	partitions = 6 // of each topic

	// session is for how long the broker waits for a sign of life of a worker until
	// it gives its partitions to others. The usual 45 seconds are too long here.
	session = 1500 * time.Millisecond
)

func findKafka(ctx context.Context, progress io.Writer) (server string, err error) {
	if _, err := kafkaserver.FindJava(ctx); err != nil {
		return "", err
	}
	if _, err := kafkaserver.Fetch(ctx, progress); err != nil {
		return "", err
	}
	return "Apache Kafka " + kafkaserver.Version, nil
}

// serveKafka is the broker: one node, a child of this process.
func serveKafka(ctx context.Context, _ setting) error {
	// Nobody kills it, so it need not be taken for dead when the machine is busy.
	server, err := kafkaserver.Start(ctx, kafkaserver.Options{Config: "broker.session.timeout.ms=9000"})
	if err != nil {
		return err
	}
	crew.Say(server.Broker())
	<-ctx.Done()
	return server.Close()
}

// kafkaBroker is a connection to Kafka.
type kafkaBroker struct {
	client *kgo.Client
	admin  *kadm.Client
}

func connectKafka(s setting, t *trouble) (broker, error) {
	options := []kgo.Opt{
		kgo.SeedBrokers(s.Address),
		kgo.SessionTimeout(session),
		kgo.HeartbeatInterval(session / 6),
		kgo.RetryBackoffFn(func(int) time.Duration { return 100 * time.Millisecond }),
	}
	if t != nil {
		options = append(options,
			// With it a worker takes over the partitions of the one that was killed in
			// its place at once, and not when that one's session has run out.
			kgo.InstanceID(fmt.Sprint("worker-", s.Place)),
			kgo.Dialer((&commitLoss{trouble: t}).dial))
	}
	client, err := kgo.NewClient(options...)
	if err != nil {
		return nil, err
	}
	return &kafkaBroker{client, kadm.NewClient(client)}, nil
}

func (b *kafkaBroker) close() { b.client.Close() }

func (b *kafkaBroker) createTopics(ctx context.Context) error {
	created, err := b.admin.CreateTopics(ctx, partitions, 1, nil, orders, invoices, deadLetters)
	if err := errors.Join(err, created.Error()); err != nil {
		return err
	}
	// The first question about a group makes Kafka create the topic that it keeps
	// offsets in, which takes a moment.
	for {
		_, err := b.look(ctx, orders, "billing")
		if !kerr.IsRetriable(err) {
			return err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (b *kafkaBroker) publisher() message.Publisher { return &kafka.Publisher{Client: b.client} }

func (b *kafkaBroker) sink() outbox.Sink { return &kafka.Sink{Client: b.client} }

// subscriber returns one that handles orders of different customers at the same
// time.
func (b *kafkaBroker) subscriber(group string) message.Subscriber {
	return &kafka.Subscriber{
		Client:      b.client,
		Group:       group,
		MaxInFlight: 8,
		NakDelay:    func(uint64) time.Duration { return 100 * time.Millisecond },
	}
}

// look asks first for what is committed: where that is the end, nothing was
// waiting when it was asked for.
func (b *kafkaBroker) look(ctx context.Context, topic, group string) (f streams.Flow, err error) {
	committed, err := b.admin.FetchOffsetsForTopics(ctx, group, topic)
	if err := errors.Join(err, committed.Error()); err != nil {
		return f, fmt.Errorf("look up the offsets of group %s in topic %s: %w", group, topic, err)
	}
	begins, err := b.admin.ListStartOffsets(ctx, topic)
	if err := errors.Join(err, begins.Error()); err != nil {
		return f, fmt.Errorf("look up the beginning of topic %s: %w", topic, err)
	}
	ends, err := b.admin.ListEndOffsets(ctx, topic)
	if err := errors.Join(err, ends.Error()); err != nil {
		return f, fmt.Errorf("look up the end of topic %s: %w", topic, err)
	}
	ends.Each(func(end kadm.ListedOffset) {
		begin, _ := begins.Lookup(topic, end.Partition)
		handled, _ := committed.Lookup(topic, end.Partition) // At is -1 before the first commit
		f.Messages += int(end.Offset - begin.Offset)
		f.Waiting += int(end.Offset - max(begin.Offset, handled.At))
	})
	return f, nil
}

func (b *kafkaBroker) payloads(ctx context.Context, topic string, messages int) (all []string, err error) {
	reader, err := kgo.NewClient(append(b.client.Opts(), kgo.ConsumeTopics(topic))...)
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	for len(all) < messages {
		fetches := reader.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return nil, err
		}
		fetches.EachRecord(func(r *kgo.Record) { all = append(all, string(r.Value)) })
	}
	return all, nil
}
