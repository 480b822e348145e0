package main

import (
	"context"
	"net"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oncemill/oncemill/consumers/kafka"
	"github.com/oncemill/oncemill/outbox"
)

// session is for how long Kafka waits for a sign of life of a worker until it gives its
// partitions to others. One that is frozen for longer wakes up as a zombie.
const session = ackWait

// ahead is how many messages of a partition are out at a time where Once has batches.
const ahead = 2 * batchSize

type kafkaBroker struct{ client *kgo.Client }

func connectKafka(s setting) (broker, error) {
	client, err := kgo.NewClient(append(inAHurry(),
		kgo.SeedBrokers(s.Addresses...),
		kgo.Dialer(through(s.Addresses[0])),
		kgo.SessionTimeout(session),
		kgo.HeartbeatInterval(session/6))...)
	if err != nil {
		return nil, err
	}
	return &kafkaBroker{client}, nil
}

// inAHurry are options of those who look soon again for a node that was away.
func inAHurry() []kgo.Opt {
	return []kgo.Opt{
		kgo.RetryBackoffFn(func(int) time.Duration { return 100 * time.Millisecond }),
		kgo.MetadataMinAge(200 * time.Millisecond),
	}
}

// through connects to a proxy, whatever the address is that Kafka has told: its own. That is
// right since there is one node.
func through(proxy string) func(ctx context.Context, network, address string) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: time.Second}
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return dialer.DialContext(ctx, network, proxy)
	}
}

func (b *kafkaBroker) publisher() message.Publisher {
	return &kafka.Publisher{Client: b.client, Timeout: time.Second}
}

func (b *kafkaBroker) sink() outbox.Sink { return &kafka.Sink{Client: b.client} }

// subscriber returns one that hands out as much as there is order in the topics of a group.
// Messages of batch are handled in the order of their partition, and those downstream in
// that of their keys; the others have no order, of which each partition has eight out.
func (b *kafkaBroker) subscriber(group string) message.Subscriber {
	s := &kafka.Subscriber{Client: b.client, Group: group, MaxInFlight: 8, NakDelay: nakDelay, DrainTimeout: 3 * time.Second}
	switch group {
	case roleBatch:
		s.MaxInFlight, s.Ahead = 1, ahead
	case roleDownstream:
		s.Ahead = ahead / s.MaxInFlight
	}
	return s
}

func (b *kafkaBroker) close() { b.client.Close() }
