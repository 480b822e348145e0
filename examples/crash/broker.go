package main

import (
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/examples/internal/streams"
	"github.com/oncemill/oncemill/outbox"
)

// A broker is a process's connection to the broker.
type broker interface {
	publisher() message.Publisher
	sink() outbox.Sink
	subscriber(group string) message.Subscriber
	close()
}

// connect connects a process to the broker.
func (s setting) connect() (broker, error) {
	switch s.Broker {
	case "nats":
		return connectNATS(s)
	case "kafka":
		return connectKafka(s)
	}
	return nil, fmt.Errorf("there is no broker %q", s.Broker)
}

// ackWait is soon over: what was not acknowledged is delivered again.
const ackWait = 1500 * time.Millisecond

// nakDelay is the pause before what was nacked comes again.
func nakDelay(attempt uint64) time.Duration {
	return min(time.Duration(attempt)*50*time.Millisecond, time.Second)
}

type natsBroker struct{ *streams.Broker }

func connectNATS(s setting) (broker, error) {
	b, err := streams.ConnectAll(s.Addresses,
		nats.ReconnectWait(50*time.Millisecond), nats.ReconnectJitter(50*time.Millisecond, 0),
		nats.PingInterval(500*time.Millisecond), nats.MaxPingsOutstanding(2), nats.Timeout(time.Second))
	if err != nil {
		return nil, err
	}
	return natsBroker{b}, nil
}

func (b natsBroker) publisher() message.Publisher {
	return &jetstream.Publisher{Conn: b.Conn, Timeout: time.Second}
}

func (b natsBroker) sink() outbox.Sink { return &jetstream.Sink{Conn: b.Conn} }

func (b natsBroker) subscriber(group string) message.Subscriber {
	return &jetstream.Subscriber{Conn: b.Conn, Group: group, MaxInFlight: 128, AckWait: ackWait, NakDelay: nakDelay, DrainTimeout: 3 * time.Second}
}

func (b natsBroker) close() { b.Close() }
