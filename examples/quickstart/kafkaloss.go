package main

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/oncemill/oncemill/examples/internal/crew"
)

// cutOff is for how long a worker cannot reach Kafka: longer than its session.
const cutOff = session + 500*time.Millisecond

var errCutOff = errors.New("cut off on purpose")

// commitLoss dials a worker's connections to Kafka, to lose an offset commit on
// them. The client would repeat a commit that got lost alone. So with it the worker
// is cut off, until Kafka has taken it for dead and given its partitions to another,
// who gets what was not committed; meanwhile the worker goes on with what it has.
type commitLoss struct {
	trouble *trouble

	mu    sync.Mutex
	conns []net.Conn
	until time.Time // it is cut off; zero: it was not yet
}

func (c *commitLoss) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Now().Before(c.until) {
		return nil, errCutOff
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c.conns = append(c.conns, conn)
	return commitLine{conn, c}, nil
}

// commitLine is a connection that does not let every offset commit through.
type commitLine struct {
	net.Conn
	loss *commitLoss
}

func (l commitLine) Write(request []byte) (int, error) {
	if isOffsetCommit(request) && l.loss.onCommit() {
		return 0, errCutOff
	}
	return l.Conn.Write(request)
}

// isOffsetCommit recognises a request, which the client writes as a whole. It begins
// with its length, in four bytes, and a number for what it is, in two.
func isOffsetCommit(request []byte) bool {
	return len(request) >= 6 && int16(binary.BigEndian.Uint16(request[4:])) == kmsg.OffsetCommit.Int16()
}

// onCommit tells whether an offset commit gets lost, which happens in the middle of
// a process's life. At its end a commit is withheld: handlers have committed, and
// the broker is not told.
func (c *commitLoss) onCommit() (lost bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.trouble
	n := t.finished.Load()
	switch {
	case t.cutOff && c.until.IsZero() && n >= t.lifetime/2:
		c.cut()
		crew.Say(saysLostCommit)
		return true
	case t.lifetime > 0 && n >= t.lifetime:
		crew.AwaitKill()
	}
	return false
}

func (c *commitLoss) cut() {
	c.until = time.Now().Add(cutOff)
	for _, conn := range c.conns {
		conn.Close()
	}
	c.conns = nil
}
