package jetstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	// pullExpires is how long the server keeps a pull request that it cannot
	// fulfil. While it waits, the server says every pullHeartbeat that it does;
	// after silence without a word the request is taken for lost.
	pullExpires   = 10 * time.Second
	pullHeartbeat = 2 * time.Second
	silence       = 2*pullHeartbeat + time.Second

	// maxPulls keeps a process far from the 512 pull requests that a server lets
	// wait for one consumer.
	maxPulls = 8
)

// A pull is one request for messages. Each slot that it has asked for is
// reserved for the message that may come.
//
// This is the protocol of nats.go's Consumer.Fetch, done by hand for three
// reasons. Fetch drops messages that arrive around the moment in which it is
// cancelled; they are delivered again only after AckWait, during which a
// consumer that keeps order stands still. It never delivers a message without
// payload whose publisher has set a header "Status", because it takes it for
// word from the server. And messages of several Fetches that are under way at
// once lose their order.
type pull struct {
	src      *source
	sub      *nats.Subscription
	left     int // reserved slots
	draining bool
	heard    time.Time // when the server last said something
}

// pullRequest is the body of a request.
type pullRequest struct {
	Batch     int           `json:"batch"`
	Expires   time.Duration `json:"expires"`
	Heartbeat time.Duration `json:"idle_heartbeat,omitempty"`
}

var errSilence = errors.New("the server does not answer")

// startPull asks for n messages. All pulls deliver into one channel, so that
// messages keep the order in which they came over the connection.
func (s *subscription) startPull(n int) error {
	inbox := s.conn.NewInbox()
	sub, err := s.conn.ChanSubscribe(inbox, s.incoming)
	if err != nil {
		return err
	}
	s.pulls[sub] = &pull{src: s.src, sub: sub, left: n, heard: time.Now()}
	req := pullRequest{Batch: n, Expires: s.src.expires, Heartbeat: min(pullHeartbeat, s.src.expires/3)}
	body, err := json.Marshal(req)
	if err != nil {
		return err
	}
	return s.conn.PublishRequest(s.api+"CONSUMER.MSG.NEXT."+s.src.stream+"."+s.src.consumer, inbox, body)
}

// stopPulls gives up all requests. Messages that are under way still arrive,
// until the server knows that nobody listens any more.
func (s *subscription) stopPulls() {
	for _, p := range s.pulls {
		if p.draining {
			continue
		}
		p.draining = true
		p.sub.SetClosedHandler(func(string) {
			select {
			case s.drained <- p:
			default: // checkPulls finds it
			}
		})
		if !s.conn.IsConnected() || p.sub.Drain() != nil {
			s.endPull(p)
		}
	}
}

func (s *subscription) endPull(p *pull) {
	_ = p.sub.Unsubscribe()
	delete(s.pulls, p.sub)
	s.look.trusted = time.Now()
}

// checkPulls finds requests that are lost.
func (s *subscription) checkPulls(hard, messages context.Context) (err error) {
	for _, p := range s.pulls {
		switch {
		case p.draining && (!p.sub.IsValid() || !s.conn.IsConnected()):
			s.ended(hard, messages, p)
		case !p.draining && time.Since(p.heard) > silence && len(s.incoming) == 0:
			err = errSilence
		}
	}
	return err
}

// verdict reads what the server says about a pull request: over when it has
// ended, with an error if that was not as it should be.
func verdict(status *nats.Msg) (over bool, err error) {
	code, text := status.Header.Get("Status"), status.Header.Get("Description")
	switch code {
	case "100": // a heartbeat
		return false, nil
	case "404", "408": // nothing came, or not enough
		return true, nil
	case "503":
		return true, fmt.Errorf("the consumer does not answer: %w", nats.ErrNoResponders)
	}
	return true, fmt.Errorf("the server ended a pull request: %s %s", code, text)
}
