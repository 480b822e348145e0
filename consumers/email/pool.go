package email

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/oncemill/oncemill"
)

// A pool has the connections to one server.
type pool struct {
	set      *settings
	slots    chan struct{} // one for each connection in use
	idleTime time.Duration

	mu     sync.Mutex
	idle   []*conn // the one that was used last is at the end
	closed bool
	leaves sync.WaitGroup // those that take leave of the server
}

func (p *pool) open(set *settings, most int, idleTime time.Duration) {
	p.set, p.slots, p.idleTime = set, make(chan struct{}, most), idleTime
}

// take returns a connection for one mail. The mail gets half of its time for the
// dialogue at least: one that is begun late is easily left in doubt.
func (p *pool) take(ctx context.Context) (*conn, error) {
	start := time.Now()
	deadline, _ := ctx.Deadline()
	late := time.NewTimer(time.Until(deadline) / 2)
	defer late.Stop()
	select {
	case p.slots <- struct{}{}:
	case <-late.C:
		return nil, oncemill.ProviderAway(fmt.Errorf("email: all connections were in use for %v: raise Sender.MaxConns, or have fewer messages in flight", time.Since(start).Round(time.Millisecond)))
	case <-ctx.Done():
		return nil, oncemill.ProviderAway(fmt.Errorf("email: %w while all connections were in use", context.Cause(ctx)))
	}
	c, err := p.ready(ctx)
	if err != nil {
		<-p.slots
		return nil, err
	}
	return c, nil
}

func (p *pool) ready(ctx context.Context) (*conn, error) {
	c, err := p.fromIdle()
	if err != nil {
		return nil, err
	}
	if c != nil {
		c.hold(ctx)
		if c.client.Reset() == nil {
			return c, nil
		}
		c.drop() // the server has closed it, most likely for its age
	}
	c = &conn{set: p.set}
	return c, c.dial(ctx)
}

// fromIdle returns a connection that was used before, or nil.
func (p *pool) fromIdle() (*conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, oncemill.ProviderAway(ErrClosed)
	}
	last := len(p.idle) - 1
	if last < 0 {
		return nil, nil
	}
	c := p.idle[last]
	p.idle = p.idle[:last]
	c.idle.Stop() // if it is late, expire does not find the connection
	c.reused = true
	return c, nil
}

// give takes a connection back, for the next mail if it is fit for it.
func (p *pool) give(c *conn) {
	defer func() { <-p.slots }()
	if !c.usable || !c.release() {
		c.drop()
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		c.drop()
	case p.idleTime < 0:
		p.leaves.Go(c.quit)
	default:
		c.idle = time.AfterFunc(p.idleTime, func() { p.expire(c) })
		p.idle = append(p.idle, c)
	}
}

// expire closes a connection that was not used for a while.
func (p *pool) expire(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(p.idle, c); i >= 0 {
		p.idle = slices.Delete(p.idle, i, i+1)
		p.leaves.Go(c.quit)
	}
}

func (p *pool) close() {
	p.mu.Lock()
	idle := p.idle
	p.idle, p.closed = nil, true
	for _, c := range idle {
		c.idle.Stop()
		p.leaves.Go(c.quit)
	}
	p.mu.Unlock()
	p.leaves.Wait()
}
