// Package proxy breaks connections between a test's processes and a server at chosen
// moments.
package proxy

import (
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
)

// A Proxy stands between a process and a server, and loses what it is told to.
type Proxy struct {
	listener net.Listener
	server   string
	watch    func() Watch
	losses   atomic.Int64
	wg       sync.WaitGroup
	mu       sync.Mutex
	conns    map[net.Conn]struct{}
}

// A Watch looks at all that is sent to the server on one connection, and decides what
// becomes of it.
type Watch func(request []byte) Loss

// A Loss is what becomes of a piece of a connection, and of the connection.
type Loss int

// Losses.
const (
	Nothing    Loss = iota
	TheRequest      // it does not arrive, and the connection breaks
	TheAnswer       // it arrives, and the connection breaks in place of the answer
)

// Through returns a proxy in front of a server until the test ends, and the server's URL
// through it. watch is called for each connection.
func Through(t *testing.T, address string, watch func() Watch) (*Proxy, string) {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{listener: listener, server: u.Host, watch: watch, conns: make(map[net.Conn]struct{})}
	p.wg.Go(p.accept)
	t.Cleanup(p.close)
	u.Host = listener.Addr().String()
	return p, u.String()
}

// Losses returns how often it has lost something.
func (p *Proxy) Losses() int64 { return p.losses.Load() }

func (p *Proxy) close() {
	p.listener.Close()
	p.mu.Lock()
	for conn := range p.conns {
		conn.Close()
	}
	p.conns = nil
	p.mu.Unlock()
	p.wg.Wait()
}

// keep has a connection closed at the end, and tells whether that is still to
// come.
func (p *Proxy) keep(conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conns == nil {
		return false
	}
	p.conns[conn] = struct{}{}
	return true
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.server)
		if err != nil {
			client.Close()
			continue
		}
		if !p.keep(client) || !p.keep(server) {
			client.Close()
			server.Close()
			return
		}
		var muted atomic.Bool
		p.wg.Go(func() { p.answers(client, server, &muted) })
		p.wg.Go(func() { p.requests(client, server, &muted) })
	}
}

func (p *Proxy) answers(client, server net.Conn, muted *atomic.Bool) {
	defer client.Close()
	defer server.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := server.Read(buf)
		if err != nil || muted.Load() {
			return
		}
		if _, err := client.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (p *Proxy) requests(client, server net.Conn, muted *atomic.Bool) {
	defer server.Close()
	lose := p.watch()
	buf := make([]byte, 64<<10)
	for {
		n, err := client.Read(buf)
		if err != nil {
			return
		}
		if !muted.Load() {
			switch lose(buf[:n]) {
			case TheRequest:
				p.losses.Add(1)
				client.Close()
				return
			case TheAnswer:
				p.losses.Add(1)
				muted.Store(true)
			}
		}
		if _, err := server.Write(buf[:n]); err != nil {
			return
		}
	}
}
