package guard_test

import (
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
)

// A gate stands between a guard and Postgres. Closed, it breaks all connections off and
// takes no new ones. Frozen, it keeps them, but what is sent does not arrive until it is
// thawed.
type gate struct {
	url    string
	server string

	mu       sync.Mutex
	listener net.Listener
	addr     string
	conns    map[net.Conn]bool
	wg       sync.WaitGroup
	frozen   sync.RWMutex // locked while it is
	stuck    atomic.Int32 // connections that wait for that
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
			g.wg.Go(func() { pass(&slowly{server, g}, client) })
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

// slowly is a connection to Postgres that waits while the gate is frozen.
type slowly struct {
	net.Conn
	g *gate
}

func (s *slowly) Write(sent []byte) (int, error) {
	s.g.stuck.Add(1)
	s.g.frozen.RLock()
	s.g.stuck.Add(-1)
	defer s.g.frozen.RUnlock()
	return s.Conn.Write(sent)
}

func pass(to, from net.Conn) {
	_, _ = io.Copy(struct{ io.Writer }{to}, from)
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
