// Package pqdial lets a test's process watch its own connections to Postgres.
package pqdial

import (
	"bytes"
	"context"
	"net"
	"time"
)

// A Dialer dials for lib/pq, and returns what it makes of each connection.
type Dialer func(net.Conn) net.Conn

// Dial is for lib/pq.
func (d Dialer) Dial(network, address string) (net.Conn, error) {
	return d.DialContext(context.Background(), network, address)
}

// DialTimeout is for lib/pq.
func (d Dialer) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return d.DialContext(ctx, network, address)
}

// DialContext is for lib/pq.
func (d Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return d(conn), nil
}

// AroundCommits returns a Dialer whose connections call before when they are about to send
// a COMMIT, and within once it is sent.
func AroundCommits(before, within func()) Dialer {
	return func(conn net.Conn) net.Conn { return committing{conn, before, within} }
}

type committing struct {
	net.Conn
	before, within func()
}

func (c committing) Write(p []byte) (int, error) {
	commits := len(p) > 5 && p[0] == 'Q' && bytes.HasPrefix(p[5:], []byte("COMMIT"))
	if commits {
		c.before()
	}
	n, err := c.Conn.Write(p)
	if commits {
		c.within()
	}
	return n, err
}
