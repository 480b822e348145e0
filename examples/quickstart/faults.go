package main

import (
	"errors"
	"sync/atomic"

	"github.com/oncemill/oncemill/examples/internal/crew"
)

// Things go wrong after a number of messages, not at random: so each does often
// enough in a small run too.

// What goes wrong, as a process says it to the conductor, a line each time.
const (
	saysLostAck    = "lost ack"
	saysLostCommit = "lost offset commit"
	saysError      = "handler error"
	saysPanic      = "handler panic"
)

// trouble is what a worker is in. What happens on its way to the broker is in
// natsloss.go and kafkaloss.go.
type trouble struct {
	every    int64        // so many messages meet with each kind of fault once; 0: none does
	lifetime int64        // messages until the kill; 0: it is spared
	cutOff   bool         // halfway
	handled  atomic.Int64 // by the handler, well or not
	finished atomic.Int64 // of which the broker may know
}

func newTrouble(s setting) *trouble {
	t := &trouble{lifetime: int64(s.Lifetime), cutOff: s.CutOff}
	if s.Faults {
		t.every = int64(min(max(s.Messages/50, 10), 50))
	}
	return t
}

// inHandler is called by a handler that has written its row.
func (t *trouble) inHandler() error {
	if t.every == 0 {
		return nil
	}
	switch t.handled.Add(1) % t.every {
	case 1:
		crew.Say(saysError)
		return errors.New("on purpose")
	case 3:
		crew.Say(saysPanic)
		panic("on purpose")
	}
	return nil
}
