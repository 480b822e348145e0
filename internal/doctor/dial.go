package doctor

import (
	"context"
	"net"
	"sync"
	"time"
)

// A hangUp dials for lib/pq, and can close what it has dialed: lib/pq waits for a server
// that has fallen silent for as long as the connection is there.
type hangUp struct {
	mu    sync.Mutex
	conns []net.Conn
	over  bool
}

// within runs fn, and closes all connections if it takes longer than limit.
func (h *hangUp) within(limit time.Duration, fn func() error) error {
	timer := time.AfterFunc(limit, h.closeAll)
	defer timer.Stop()
	return fn()
}

func (h *hangUp) closeAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.over = true
	for _, conn := range h.conns {
		_ = conn.Close() // what waits for it learns of it
	}
}

// DialContext is for lib/pq.
func (h *hangUp) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conns = append(h.conns, conn)
	if h.over {
		_ = conn.Close()
	}
	return conn, nil
}

// Dial is for lib/pq.
func (h *hangUp) Dial(network, address string) (net.Conn, error) {
	return h.DialContext(context.Background(), network, address)
}

// DialTimeout is for lib/pq.
func (h *hangUp) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return h.DialContext(ctx, network, address)
}
