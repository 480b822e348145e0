package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// lines are the proxies by which some roles reach the servers: what happens to theirs does
// not happen to others'.
type lines struct {
	name     string
	postgres []*toxiproxy.Proxy // as many as there are servers
	broker   []*toxiproxy.Proxy
	guards   []*toxiproxy.Proxy
}

// group tells whose lines a role has.
func group(role string) string {
	switch role {
	case roleSingle, roleBatch, roleGuarded:
		return "workers"
	case roleProducer, roleClerk:
		return "producers"
	}
	return role + "s"
}

var groups = []string{"workers", "producers", "relays", "downstreams", "guards", "agents"}

func newLines(name string, postgres, broker, guards []string) (l *lines, err error) {
	l = &lines{name: name}
	for _, to := range []struct {
		proxies   *[]*toxiproxy.Proxy
		addresses []string
	}{{&l.postgres, postgres}, {&l.broker, broker}, {&l.guards, guards}} {
		if *to.proxies, err = newProxies(to.addresses); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func newProxies(addresses []string) (all []*toxiproxy.Proxy, err error) {
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	for _, address := range addresses {
		p := toxiproxy.NewProxy(server, address, "127.0.0.1:0", address)
		if err := p.Start(); err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

func (l *lines) close() {
	for _, p := range l.all() {
		p.Stop()
	}
}

func (l *lines) all() (all []*toxiproxy.Proxy) {
	return append(append(append(all, l.postgres...), l.broker...), l.guards...)
}

// pick returns all lines to one kind of servers, and what that is.
func (l *lines) pick(draws *rand.Rand) (to string, picked []*toxiproxy.Proxy) {
	switch {
	case len(l.guards) > 0:
		return "the guards", l.guards
	case len(l.broker) > 0 && draws.IntN(2) == 0:
		return "the broker", l.broker
	}
	return "Postgres", l.postgres
}

func addressesOf(proxies []*toxiproxy.Proxy) (all []string) {
	for _, p := range proxies {
		all = append(all, p.Listen)
	}
	return all
}

// cut breaks all connections.
func cut(proxies []*toxiproxy.Proxy) error {
	for _, p := range proxies {
		p.Stop()
		if err := p.Start(); err != nil {
			return err
		}
	}
	return nil
}

// poison has something happen to all that goes over the lines. heal ends it.
func poison(proxies []*toxiproxy.Proxy, kind, stream string, attributes string) (heal func(), err error) {
	const name = "nemesis"
	toxic := fmt.Sprintf(`{"name": %q, "type": %q, "stream": %q, "attributes": {%s}}`, name, kind, stream, attributes)
	for _, p := range proxies {
		if _, err := p.Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
			return nil, err
		}
	}
	return func() {
		for _, p := range proxies {
			_ = p.Toxics.RemoveToxic(context.Background(), name) // it is there
		}
	}, nil
}

// slow delays all that goes one way.
func slow(proxies []*toxiproxy.Proxy, by time.Duration) (heal func(), err error) {
	return poison(proxies, "latency", "downstream", fmt.Sprintf(`"latency": %d, "jitter": %d`, by.Milliseconds(), by.Milliseconds()/2))
}

// swallow loses all that goes one way, while the connections stay open; they break when it
// is over.
func swallow(proxies []*toxiproxy.Proxy, stream string) (heal func() error, err error) {
	end, err := poison(proxies, "timeout", stream, `"timeout": 0`)
	return func() error {
		end()
		return cut(proxies)
	}, err
}
