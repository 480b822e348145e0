package main

import (
	"context"
	"log/slog"

	"github.com/nats-io/nats.go"

	"github.com/oncemill/oncemill/outbox"
)

// A broker is where the relay publishes to, connected.
type broker struct {
	name  string // for people
	sink  outbox.Sink
	ready func() error // nil while the broker is there, else what is wrong
	close func()
}

// A connectTo connects to what flags that are checked lead to.
type connectTo func(context.Context) (*broker, error)

// brokerOptions are the flags that lead to one broker or the other, or to both.
type brokerOptions struct {
	given  func(prefix string) (as string)
	nats   natsOptions
	kafka  kafkaOptions
	routes *[]outbox.Route
}

func (f *flags) broker() brokerOptions {
	return f.brokerUnless("(default " + nats.DefaultURL + ")")
}

// brokerUnless is broker, and unlessNATS is what the help says of no --nats-url.
func (f *flags) brokerUnless(unlessNATS string) brokerOptions {
	return brokerOptions{given: f.given, nats: f.nats(unlessNATS), kafka: f.kafka(), routes: f.routes()}
}

// check checks the flags and returns what connects to the broker that they name.
func (o brokerOptions) check(logger *slog.Logger) (connectTo, error) {
	if len(*o.routes) > 0 {
		return o.checkRoutes(logger)
	}
	kafka, nats := o.given("kafka-"), o.given("nats-")
	if brokers := o.given("kafka-brokers"); brokers != "" {
		if nats != "" {
			return nil, usagef("%s is for Kafka and %s for NATS: leave out one or the other, or say with --route which topics go to which", brokers, nats)
		}
		return o.kafka.check(logger)
	}
	if kafka != "" {
		return nil, usagef("%s is for Kafka: give --kafka-brokers as well, or set %s", kafka, variable("kafka-brokers"))
	}
	return o.nats.check(logger)
}
