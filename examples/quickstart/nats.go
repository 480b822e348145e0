package main

import (
	"context"
	"io"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/examples/internal/crew"
	"github.com/oncemill/oncemill/examples/internal/streams"
	"github.com/oncemill/oncemill/outbox"
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

// serveNATS is the broker.
func serveNATS(ctx context.Context, _ setting) error { return streams.Serve(ctx, crew.Say) }

// natsBroker is a connection to NATS.
type natsBroker struct{ *streams.Broker }

func connectNATS(s setting, t *trouble) (broker, error) {
	var options []nats.Option
	if t != nil {
		options = append(options, nats.SetCustomDialer(&ackLoss{trouble: t}))
	}
	b, err := streams.Connect(s.Address, options...)
	if err != nil {
		return nil, err
	}
	return natsBroker{b}, nil
}

func (b natsBroker) close() { b.Close() }

func (b natsBroker) createTopics(ctx context.Context) error {
	return b.Create(ctx, natsMemory, orders, invoices, deadLetters)
}

func (b natsBroker) publisher() message.Publisher { return &jetstream.Publisher{Conn: b.Conn} }

func (b natsBroker) sink() outbox.Sink { return &jetstream.Sink{Conn: b.Conn} }

// subscriber returns one that is in a hurry, unlike the default: what was not
// acknowledged is soon delivered again.
func (b natsBroker) subscriber(group string) message.Subscriber {
	return &jetstream.Subscriber{
		Conn:     b.Conn,
		Group:    group,
		AckWait:  time.Second,
		NakDelay: func(uint64) time.Duration { return 100 * time.Millisecond },
	}
}

func (b natsBroker) look(ctx context.Context, subject, group string) (streams.Flow, error) {
	return b.Look(ctx, subject, group)
}

func (b natsBroker) payloads(ctx context.Context, subject string, messages int) (all []string, err error) {
	read, err := b.Read(ctx, subject, messages)
	for _, msg := range read {
		all = append(all, string(msg.Data()))
	}
	return all, err
}
