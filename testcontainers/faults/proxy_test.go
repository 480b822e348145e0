package faults_test

import (
	"bytes"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
)

// A proxy stands between a process and a server, and loses what it is told to.
type proxy struct {
	t        *testing.T
	listener net.Listener
	server   string
	lose     func(request []byte) loss // looks at all that is sent to the server
	losses   atomic.Int64
	wg       sync.WaitGroup
	mu       sync.Mutex
	conns    map[net.Conn]struct{}
}

// A loss is what becomes of a piece of a connection, and of the connection.
type loss int

const (
	nothing    loss = iota
	theRequest      // it does not arrive, and the connection breaks
	theAnswer       // it arrives, and the connection breaks in place of the answer
)

// through returns a proxy in front of a server, and the server's URL through it.
func through(t *testing.T, address string, lose func(request []byte) loss) (*proxy, string) {
	t.Helper()
	u, err := url.Parse(address)
	must(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	p := &proxy{t: t, listener: listener, server: u.Host, lose: lose, conns: make(map[net.Conn]struct{})}
	p.wg.Go(p.accept)
	t.Cleanup(p.close)
	u.Host = listener.Addr().String()
	return p, u.String()
}

func (p *proxy) close() {
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
func (p *proxy) keep(conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conns == nil {
		return false
	}
	p.conns[conn] = struct{}{}
	return true
}

func (p *proxy) accept() {
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

func (p *proxy) answers(client, server net.Conn, muted *atomic.Bool) {
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

func (p *proxy) requests(client, server net.Conn, muted *atomic.Bool) {
	defer server.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := client.Read(buf)
		if err != nil {
			return
		}
		if !muted.Load() {
			switch p.lose(buf[:n]) {
			case theRequest:
				p.losses.Add(1)
				client.Close()
				return
			case theAnswer:
				p.losses.Add(1)
				muted.Store(true)
			}
		}
		if _, err := server.Write(buf[:n]); err != nil {
			return
		}
	}
}

// every returns a proxy's lose that has the given loss on every n-th request
// that has a text in it, most times in all.
func every(n, most int, text string, what loss) func([]byte) loss {
	var mu sync.Mutex
	seen, lost := 0, 0
	return func(request []byte) loss {
		mu.Lock()
		defer mu.Unlock()
		if lost == most || !bytes.Contains(bytes.ToUpper(request), []byte(text)) {
			return nothing
		}
		if seen++; seen%n != 0 {
			return nothing
		}
		lost++
		return what
	}
}
