package main

import (
	"context"
	"io"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/examples/internal/streams"
	"github.com/oncemill/oncemill/outbox"
)

// The topics. Nothing is given up in the demo, but whoever uses a Stack has a place
// for dead letters.
const (
	orders      = "orders"
	invoices    = "invoices"
	deadLetters = "dead-letter"
)

// A brand is a kind of broker: all in which the demo on one differs from that on
// another. Its server is the role of the same name.
type brand struct {
	title string // what people call it

	// find looks for what a server needs, or downloads it, and says what that is.
	find func(ctx context.Context, progress io.Writer) (server string, err error)

	// connect connects to the server. A worker's trouble is that of its subscribers;
	// nil: there is none.
	connect func(s setting, t *trouble) (broker, error)

	workers int           // processes of billing, and as many of shipping
	spread  time.Duration // in which the orders come; 0: as fast as they can
	memory  time.Duration // for which it recognises what is published twice
	counts  bool          // deliveries, so that nobody else has to
	lost    kind          // how it does not get to know that messages are handled
	killed  string        // what it is when a worker is killed at its worst moment
}

var brands = map[string]*brand{"nats": natsBrand, "kafka": kafkaBrand}

// A broker is a connection to one.
type broker interface {
	createTopics(ctx context.Context) error
	publisher() message.Publisher
	subscriber(group string) message.Subscriber
	sink() outbox.Sink

	// look says how far the group has come with the topic. One whose worker has
	// not come yet has done nothing.
	look(ctx context.Context, topic, group string) (streams.Flow, error)

	// payloads reads as many messages of the topic, from the first on.
	payloads(ctx context.Context, topic string, messages int) ([]string, error)

	close()
}

func (s setting) brand() *brand { return brands[s.Broker] }

func (s setting) connect(t *trouble) (broker, error) { return s.brand().connect(s, t) }
