package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"regexp"
	"sync"
	"sync/atomic"
	"time"
)

// Things go wrong after a number of messages, not at random: so each does often
// enough in a small run too.

// What goes wrong, as a process says it to the conductor, a line each time.
const (
	saysLostAck = "lost ack"
	saysError   = "handler error"
	saysPanic   = "handler panic"
	saysKillMe  = "kill me" // not yet, but this is the worst moment for it
)

func say(what string) { fmt.Println(what) }

// awaitKill is the end of a process. It does nothing more, and the conductor
// sends SIGKILL.
func awaitKill() {
	say(saysKillMe)
	select {}
}

// kills is how often each of the workers and the relay is killed in a run.
const kills = 6

// lifetime returns after how many messages a doomed process is killed. All of
// the kills take place well before the end of the run.
func lifetime(s setting) int { return s.Messages / (kills + 2) }

// trouble is what a worker is in. It dials the worker's connection to the broker,
// to lose acknowledgements on it.
type trouble struct {
	every    int64 // so many messages meet with each kind of fault once; 0: none does
	lifetime int64 // acknowledgements until the kill; 0: it is spared
	handled  atomic.Int64
	acks     atomic.Int64
	lost     sync.Map // the deliveries whose acknowledgement was lost
}

func newTrouble(s setting) *trouble {
	t := new(trouble)
	if s.Faults {
		t.every = int64(min(max(s.Messages/50, 10), 50))
	}
	if s.Doomed {
		t.lifetime = int64(lifetime(s))
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
		say(saysError)
		return errors.New("on purpose")
	case 3:
		say(saysPanic)
		panic("on purpose")
	}
	return nil
}

// Dial makes trouble a nats.CustomDialer.
func (t *trouble) Dial(network, address string) (net.Conn, error) {
	conn, err := net.DialTimeout(network, address, 5*time.Second)
	return lossy{conn, t}, err
}

// lossy is a connection to the broker on which acknowledgements get lost. The
// subscriber does not know, and the broker delivers those messages again.
type lossy struct {
	net.Conn
	trouble *trouble
}

// ack is how a client of NATS says on the wire that a message is acknowledged.
var ack = regexp.MustCompile(`PUB \$JS\.ACK\.\S+ \S+ 4\r\n\+ACK\r\n`)

func (l lossy) Write(data []byte) (int, error) {
	kept := ack.ReplaceAllFunc(data, l.trouble.onAck)
	if _, err := l.Conn.Write(kept); err != nil {
		return 0, err
	}
	return len(data), nil
}

// onAck returns what becomes of an acknowledgement. At the end of a process's
// life it is withheld: the handler has committed, and the broker is not told.
func (t *trouble) onAck(ack []byte) []byte {
	n := t.acks.Add(1)
	if n == t.lifetime {
		awaitKill()
	}
	if t.every == 0 || n%t.every != 2 {
		return ack
	}
	delivery := string(bytes.Fields(ack)[1])
	if _, again := t.lost.LoadOrStore(delivery, true); again {
		return ack // the subscriber acknowledges once more when there is no answer
	}
	say(saysLostAck)
	return nil
}
