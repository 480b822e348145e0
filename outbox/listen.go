package outbox

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/lib/pq"

	"github.com/oncemill/oncemill/internal/pgurl"
)

const (
	// minReconnect and maxReconnect bound the pause between attempts to listen.
	// Run cannot return during such a pause, so it is short.
	minReconnect = 100 * time.Millisecond
	maxReconnect = time.Second
)

// listen wakes the Relay whenever a Publisher notifies the schema's channel,
// and whenever a notification may have been missed. stop ends that and returns
// once everything it started has ended.
func (r *Relay) listen(ctx context.Context) (stop func()) {
	if r.ListenURL == "" {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	listener := pq.NewDialListener(dialUntil(ctx), pgurl.Normal(r.ListenURL), minReconnect, maxReconnect, r.listenerEvents(ctx))
	var tasks sync.WaitGroup
	tasks.Go(func() {
		for range listener.Notify { // a nil stands for those that a lost connection may have swallowed
			r.Wake()
		}
	})
	tasks.Go(func() {
		if err := listener.Listen(Channel(r.Schema)); err != nil && ctx.Err() == nil {
			orDefault(r.Logger).Warn("outbox relay: cannot listen for wake-ups, will only poll", "error", err)
		}
		r.Wake() // for what was committed before the subscription began
	})
	return func() {
		cancel()
		listener.Close()
		tasks.Wait()
	}
}

// listenerEvents returns a callback that logs when listening ceases to work and
// when it works again.
func (r *Relay) listenerEvents(ctx context.Context) pq.EventCallbackType {
	logger := orDefault(r.Logger)
	lost := false
	return func(event pq.ListenerEventType, err error) {
		switch event {
		case pq.ListenerEventDisconnected, pq.ListenerEventConnectionAttemptFailed:
			if !lost && ctx.Err() == nil {
				lost = true
				logger.Warn("outbox relay: hears no wake-ups, polls until it does", "error", err)
			}
		case pq.ListenerEventConnected, pq.ListenerEventReconnected:
			if lost {
				lost = false
				logger.Info("outbox relay: hears wake-ups again")
			}
		}
	}
}

// dialUntil returns a dialer whose connections, and attempts at them, end with
// ctx. Without it, closing a pq.Listener waits for a server that does not
// answer.
func dialUntil(end context.Context) dialer {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(end, cancel)()
		var d net.Dialer
		conn, err := d.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return endingConn{conn, context.AfterFunc(end, func() { conn.Close() })}, nil
	}
}

// A dialer is what lib/pq dials with.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

func (d dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return d(ctx, network, address)
}

func (d dialer) Dial(network, address string) (net.Conn, error) {
	return d(context.Background(), network, address)
}

func (d dialer) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return d(ctx, network, address)
}

// An endingConn is a connection that is closed when a context ends.
type endingConn struct {
	net.Conn
	forget func() bool
}

func (c endingConn) Close() error {
	c.forget()
	return c.Conn.Close()
}
