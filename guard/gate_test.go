package guard_test

import (
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
)

// A gate stands between a guard and Postgres. Closed, it breaks all connections off and
// takes no new ones.
type gate struct {
	url    string
	server string

	mu       sync.Mutex
	listener net.Listener
	addr     string
	conns    map[net.Conn]bool
	wg       sync.WaitGroup
}

func newGate(t *testing.T, address string) *gate {
	t.Helper()
	u, err := url.Parse(address)
	noError(t, err)
	g := &gate{server: u.Host, addr: "127.0.0.1:0", conns: make(map[net.Conn]bool)}
	g.open(t)
	u.Host = g.addr
	g.url = u.String()
	t.Cleanup(func() {
		g.close()
		g.wg.Wait()
	})
	return g
}

func (g *gate) open(t *testing.T) {
	t.Helper()
	listener, err := net.Listen("tcp", g.addr)
	noError(t, err)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.listener, g.addr = listener, listener.Addr().String()
	g.wg.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", g.server)
			if err != nil || !g.keep(client, server, listener) {
				client.Close()
				continue
			}
			g.wg.Go(func() { pass(server, client) })
			g.wg.Go(func() { pass(client, server) })
		}
	})
}

// keep notes a connection, unless the gate has closed meanwhile.
func (g *gate) keep(client, server net.Conn, listener net.Listener) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.listener != listener {
		server.Close()
		return false
	}
	g.conns[client], g.conns[server] = true, true
	return true
}

func pass(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	to.Close()
	from.Close()
}

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.listener != nil {
		g.listener.Close()
		g.listener = nil
	}
	for conn := range g.conns {
		conn.Close()
	}
	clear(g.conns)
}
