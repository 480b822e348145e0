package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/oncemill/oncemill/outbox"
)

// The names of the brokers in --route.
const (
	toNATS  = "nats"
	toKafka = "kafka"
)

// routes declares the flag --route, which may be given again and again.
func (f *flags) routes() *[]outbox.Route {
	p := new([]outbox.Route)
	f.add("route", "TOPICS=BROKER", `which topics go to which broker, nats or kafka, where one relay publishes to
both: such as 'orders.*=nats' and 'audit-*=kafka'. A * stands for any characters.
Give it again for further ones, or several separated by commas; the first that
matches counts. '*=nats' as the last is for all others: a message without a
route is parked`, func(value string) error {
		for one := range strings.SplitSeq(value, ",") {
			one = strings.TrimSpace(one)
			equals := strings.LastIndexByte(one, '=')
			if equals < 1 {
				return errors.New("want TOPICS=nats or TOPICS=kafka, such as 'orders.*=nats'")
			}
			route := outbox.Route{Topics: one[:equals], Sink: one[equals+1:]}
			if route.Sink != toNATS && route.Sink != toKafka {
				return fmt.Errorf("there is no broker %q: want nats or kafka", route.Sink)
			}
			*p = append(*p, route)
		}
		return nil
	})
	return p
}

// checkRoutes checks the flags where there are routes, and returns what connects to
// the brokers that they name.
func (o brokerOptions) checkRoutes(logger *slog.Logger) (connectTo, error) {
	router := &outbox.Router{Sinks: make(map[string]outbox.Sink), Routes: *o.routes}
	connects := make(map[string]connectTo)
	for _, one := range []struct {
		name, given string
		check       func(*slog.Logger) (connectTo, error)
	}{
		{toNATS, o.given("nats-"), o.nats.check},
		{toKafka, o.given("kafka-"), o.kafka.check},
	} {
		switch used := slices.ContainsFunc(*o.routes, func(r outbox.Route) bool { return r.Sink == one.name }); {
		case !used && one.given != "":
			return nil, usagef("%s is given, but no --route leads to %s: add one, such as --route '*=%s', or leave it out", one.given, one.name, one.name)
		case !used:
			continue
		case one.name == toKafka && o.given("kafka-brokers") == "":
			return nil, usagef("--route leads to kafka: give --kafka-brokers as well, or set %s", variable("kafka-brokers"))
		}
		connect, err := one.check(logger)
		if err != nil {
			return nil, err
		}
		connects[one.name] = connect
		router.Sinks[one.name] = outbox.PublisherSink{} // until it is connected
	}
	if err := router.Validate(); err != nil {
		return nil, usagef("--route: %s", strings.TrimPrefix(err.Error(), "outbox: Router.Routes: "))
	}
	return func(ctx context.Context) (*broker, error) { return connectAll(ctx, router, connects) }, nil
}

// connectAll returns what publishes to several brokers, by a router's routes.
func connectAll(ctx context.Context, router *outbox.Router, connects map[string]connectTo) (*broker, error) {
	var all brokers
	for _, name := range []string{toNATS, toKafka} {
		connect, ok := connects[name]
		if !ok {
			continue
		}
		b, err := connect(ctx)
		if err != nil {
			all.close()
			return nil, err
		}
		all = append(all, b)
		router.Sinks[name] = b.sink
	}
	return &broker{name: all.name(), sink: router, ready: all.ready, close: all.close}, nil
}

// brokers are those of one relay.
type brokers []*broker

func (all brokers) name() string {
	names := make([]string, len(all))
	for i, b := range all {
		names[i] = b.name
	}
	return strings.Join(names, " and ")
}

func (all brokers) close() {
	for _, b := range all {
		b.close()
	}
}

// ready returns nil while all are there, and otherwise how each is.
func (all brokers) ready() error {
	lines, away := make([]string, len(all)), false
	for i, b := range all {
		lines[i] = b.name + ": ready"
		if err := b.ready(); err != nil {
			lines[i], away = b.name+": "+err.Error(), true
		}
	}
	if !away {
		return nil
	}
	return errors.New(strings.Join(lines, "\n"))
}
