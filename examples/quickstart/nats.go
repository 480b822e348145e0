package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/testcontainers/natsserver"
)

var natsBrand = &brand{
	title:   "NATS JetStream",
	find:    func(context.Context, io.Writer) (string, error) { return "a NATS server", nil },
	connect: connectNATS,
	workers: 1,
	memory:  natsMemory,
	counts:  true,
	lost:    kind{saysLostAck, "lost acks", "acknowledgements lost on the way to the broker"},
	killed:  "workers killed after their commit, before the ack",
}

// natsMemory is the shortest time that JetStream takes. With the usual two minutes
// it would hide what a killed relay does; after an outage it has forgotten as well.
const natsMemory = 100 * time.Millisecond

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

// natsBroker is a connection to NATS.
type natsBroker struct {
	conn *nats.Conn
	js   natsjs.JetStream
}

func connectNATS(s setting, t *trouble) (broker, error) {
	options := []nats.Option{nats.MaxReconnects(-1)}
	if t != nil {
		options = append(options, nats.SetCustomDialer(&ackLoss{trouble: t}))
	}
	conn, err := nats.Connect(s.Address, options...)
	if err != nil {
		return nil, err
	}
	js, err := natsjs.New(conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &natsBroker{conn, js}, nil
}

func (b *natsBroker) close() { b.conn.Close() }

// createTopics makes a stream of each subject, with the same name.
func (b *natsBroker) createTopics(ctx context.Context) error {
	for _, subject := range []string{orders, invoices, deadLetters} {
		config := natsjs.StreamConfig{Name: subject, Subjects: []string{subject}, Duplicates: natsMemory}
		if _, err := b.js.CreateStream(ctx, config); err != nil {
			return err
		}
	}
	return nil
}

func (b *natsBroker) publisher() message.Publisher { return &jetstream.Publisher{Conn: b.conn} }

func (b *natsBroker) sink() outbox.Sink { return &jetstream.Sink{Conn: b.conn} }

// subscriber returns one that is in a hurry, unlike the default: what was not
// acknowledged is soon delivered again.
func (b *natsBroker) subscriber(group string) message.Subscriber {
	return &jetstream.Subscriber{
		Conn:     b.conn,
		Group:    group,
		AckWait:  time.Second,
		NakDelay: func(uint64) time.Duration { return 100 * time.Millisecond },
	}
}

func (b *natsBroker) look(ctx context.Context, subject, group string) (f flow, err error) {
	stream, err := b.js.Stream(ctx, subject)
	if err != nil {
		return f, fmt.Errorf("look up stream %s: %w", subject, err)
	}
	f.messages = int(stream.CachedInfo().State.Msgs)
	f.waiting = f.messages
	consumer, err := stream.Consumer(ctx, group+"~"+subject)
	if errors.Is(err, natsjs.ErrConsumerNotFound) {
		return f, nil
	}
	if err != nil {
		return f, fmt.Errorf("look up consumer %s of stream %s: %w", group, subject, err)
	}
	info := consumer.CachedInfo()
	f.deliveries = int(info.Delivered.Consumer)
	// The consumer hears of a message a moment after its publisher.
	f.waiting = max(int(info.NumPending)+info.NumAckPending, f.messages-int(info.Delivered.Stream))
	return f, nil
}

func (b *natsBroker) payloads(ctx context.Context, subject string, messages int) (all []string, err error) {
	consumer, err := b.js.OrderedConsumer(ctx, subject, natsjs.OrderedConsumerConfig{})
	if err != nil {
		return nil, err
	}
	reader, err := consumer.Messages()
	if err != nil {
		return nil, err
	}
	defer reader.Stop()
	for len(all) < messages {
		msg, err := reader.Next(natsjs.NextContext(ctx))
		if err != nil {
			return nil, err
		}
		all = append(all, string(msg.Data()))
	}
	return all, nil
}
