// Package streams is what the demos need of a NATS server.
package streams

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/testcontainers/natsserver"
)

// Serve is the broker: nats-server, embedded in this process until ctx ends. It tells
// its address when it is ready.
func Serve(ctx context.Context, ready func(address string)) error {
	server, err := natsserver.Embed()
	if err != nil {
		return err
	}
	ready(server.URL())
	<-ctx.Done()
	return server.Close()
}

// A Broker is a connection to NATS.
type Broker struct {
	Conn *nats.Conn
	js   natsjs.JetStream
}

// Connect connects to a server.
func Connect(address string, options ...nats.Option) (*Broker, error) {
	return ConnectAll([]string{address}, options...)
}

// ConnectAll connects to whichever server of a cluster answers.
func ConnectAll(addresses []string, options ...nats.Option) (*Broker, error) {
	conn, err := nats.Connect(strings.Join(addresses, ","), append(options, nats.MaxReconnects(-1))...)
	if err != nil {
		return nil, err
	}
	js, err := natsjs.New(conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &Broker{conn, js}, nil
}

// JetStream returns the API of streams.
func (b *Broker) JetStream() natsjs.JetStream { return b.js }

// Close closes the connection.
func (b *Broker) Close() { b.Conn.Close() }

// Create makes a stream of each subject, with the same name. memory is for how long it
// recognises what is published twice.
func (b *Broker) Create(ctx context.Context, memory time.Duration, subjects ...string) error {
	for _, subject := range subjects {
		config := natsjs.StreamConfig{Name: subject, Subjects: []string{subject}, Duplicates: memory}
		if _, err := b.js.CreateStream(ctx, config); err != nil {
			return err
		}
	}
	return nil
}

// A Flow is what a broker says about a topic and the group that consumes it.
type Flow struct {
	Messages   int // in the topic
	Waiting    int // of these, not acknowledged
	Deliveries int // to the group, if the broker counts them
}

// Look says how far the group has come with the subject. One whose worker has not come
// yet has done nothing.
func (b *Broker) Look(ctx context.Context, subject, group string) (f Flow, err error) {
	stream, err := b.js.Stream(ctx, subject)
	if err != nil {
		return f, fmt.Errorf("look up stream %s: %w", subject, err)
	}
	f.Messages = int(stream.CachedInfo().State.Msgs)
	f.Waiting = f.Messages
	consumer, err := stream.Consumer(ctx, group+"~"+subject)
	if errors.Is(err, natsjs.ErrConsumerNotFound) {
		return f, nil
	}
	if err != nil {
		return f, fmt.Errorf("look up consumer %s of stream %s: %w", group, subject, err)
	}
	info := consumer.CachedInfo()
	f.Deliveries = int(info.Delivered.Consumer)
	// The consumer hears of a message a moment after its publisher.
	f.Waiting = max(int(info.NumPending)+info.NumAckPending, f.Messages-int(info.Delivered.Stream))
	return f, nil
}

// Read reads as many messages of the subject, from the first on.
func (b *Broker) Read(ctx context.Context, subject string, messages int) (all []natsjs.Msg, err error) {
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
		all = append(all, msg)
	}
	return all, nil
}
