package jetstream

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"

	"github.com/oncemill/oncemill/internal/delivery"
)

// What a client answers to the reply subject of a delivered message.
var (
	ackBody      = []byte("+ACK")
	nakBody      = []byte("-NAK")
	progressBody = []byte("+WPI")
)

const (
	// ackTimeout is how long one attempt to acknowledge waits for the server's
	// word. It is repeated after ackPause until ackPatience is over, which begins
	// when the connection is there.
	ackTimeout  = 2 * time.Second
	ackPause    = 250 * time.Millisecond
	ackPatience = 15 * time.Second
)

// A lease is a message that the process holds: from its arrival until the server
// knows what became of it. It occupies a slot.
type lease struct {
	raw    *nats.Msg
	msg    *message.Message
	src    *source
	cancel context.CancelFunc // of the message's context
	seq    uint64
	tries  uint64

	// back takes the delay after which the message is to be delivered again, from
	// run, for a message that nobody has received. Room for one.
	back chan time.Duration

	// orphan means that the stream is gone in which the message was. What is
	// said about it now would be taken for another message with its number.
	orphan atomic.Bool

	acked bool  // with err, what became of it
	err   error // of the acknowledgement
	loose bool  // has given up its slot
}

// keep keeps the message from being delivered again until it is acknowledged,
// nacked or given back.
func (s *subscription) keep(hard context.Context, l *lease) {
	s.settle(hard, l)
	l.cancel()
	select {
	case s.released <- l:
	case <-hard.Done():
	}
}

func (s *subscription) settle(hard context.Context, l *lease) {
	beat := time.NewTicker(l.src.beat)
	defer beat.Stop()
	for {
		select {
		case <-l.msg.Acked():
			l.cancel()
			l.acked = true
			l.err = s.ack(hard, l)
			return
		case <-l.msg.Nacked():
			l.cancel()
			s.nak(l, s.delayAfter(l))
			return
		case delay := <-l.back:
			s.nak(l, delay)
			return
		case <-beat.C:
			s.say(l, progressBody)
		case <-hard.Done():
			return
		}
	}
}

// delayAfter is the delay after a nack. A handler that is interrupted because
// the subscription ends is not to blame.
func (s *subscription) delayAfter(l *lease) time.Duration {
	select {
	case <-s.ending:
		return 0
	default:
		return delivery.DelayAfter(l.msg.Context(), s.nakDelay(l.tries))
	}
}

// errOrphan is why a message is not acknowledged whose stream is gone: the server
// would take it for the message that has its number in the new one.
var errOrphan = errors.New("the stream in which the message was is gone")

// ack acknowledges and waits until the server knows. An error does not mean that
// it does not: then the message is delivered again, as a duplicate.
func (s *subscription) ack(hard context.Context, l *lease) error {
	giveUp := time.Now().Add(ackPatience)
	for {
		if l.orphan.Load() {
			return errOrphan
		}
		try, cancel := context.WithTimeout(hard, ackTimeout)
		_, err := s.conn.RequestWithContext(try, l.raw.Reply, ackBody)
		cancel()
		if err == nil || errors.Is(err, nats.ErrConnectionClosed) {
			return err
		}
		s.doubt(hard, l)
		if !s.conn.IsConnected() {
			giveUp = time.Now().Add(ackPatience)
		}
		if time.Now().After(giveUp) || !delivery.Sleep(hard, ackPause) {
			return err
		}
	}
}

// doubt frees the slot of a message whose acknowledgement is not answered. A
// server that was killed may have forgotten that it has delivered the message;
// then it does not answer until it has delivered it again, for which it needs
// the slot.
func (s *subscription) doubt(hard context.Context, l *lease) {
	if l.loose {
		return
	}
	l.loose = true
	select {
	case s.doubts <- struct{}{}:
	case <-hard.Done():
	}
}

// nak has the message delivered again after the delay. If this does not reach
// the server, that happens after AckWait.
func (s *subscription) nak(l *lease, delay time.Duration) {
	body := nakBody
	if delay > 0 {
		body = fmt.Appendf(nil, `%s {"delay": %d}`, nakBody, delay.Nanoseconds())
	}
	s.say(l, body)
}

func (s *subscription) say(l *lease, body []byte) {
	if !l.orphan.Load() {
		_ = s.conn.Publish(l.raw.Reply, body)
	}
}
