package main

import (
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// A proxy stands between the workers and Postgres, and keeps each of its answers back for
// a while.
type proxy struct{ proxy *toxiproxy.Proxy }

func startProxy(port int, latency time.Duration) (*proxy, error) {
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	p := toxiproxy.NewProxy(server, "postgres", "127.0.0.1:0", fmt.Sprintf("127.0.0.1:%d", port))
	if err := p.Start(); err != nil {
		return nil, err
	}
	toxic := fmt.Sprintf(`{"type": "latency", "stream": "downstream", "attributes": {"latency": %d}}`, latency.Milliseconds())
	if _, err := p.Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
		p.Stop()
		return nil, err
	}
	return &proxy{p}, nil
}

// through is the address of a database by way of the proxy, which may be none.
func (p *proxy) through(address string) (string, error) {
	if p == nil {
		return address, nil
	}
	u, err := url.Parse(address)
	if err != nil {
		return "", err
	}
	u.Host = p.proxy.Listen
	return u.String(), nil
}

func (p *proxy) close() error {
	p.proxy.Stop()
	return nil
}
