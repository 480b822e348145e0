package main

import (
	"bytes"
	"net"
	"regexp"
	"sync"
	"time"

	"github.com/oncemill/oncemill/examples/internal/crew"
)

// ackLoss dials a worker's connection to NATS, to lose acknowledgements on it. It
// is a nats.CustomDialer.
type ackLoss struct {
	trouble *trouble
	lost    sync.Map // the deliveries whose acknowledgement was lost
}

func (a *ackLoss) Dial(network, address string) (net.Conn, error) {
	conn, err := net.DialTimeout(network, address, 5*time.Second)
	return ackLine{conn, a}, err
}

// ackLine is a connection on which acknowledgements get lost. The subscriber does
// not know, and the broker delivers those messages again.
type ackLine struct {
	net.Conn
	loss *ackLoss
}

// ack is how a client of NATS says on the wire that a message is acknowledged.
var ack = regexp.MustCompile(`PUB \$JS\.ACK\.\S+ \S+ 4\r\n\+ACK\r\n`)

func (l ackLine) Write(data []byte) (int, error) {
	kept := ack.ReplaceAllFunc(data, l.loss.onAck)
	if _, err := l.Conn.Write(kept); err != nil {
		return 0, err
	}
	return len(data), nil
}

// onAck returns what becomes of an acknowledgement. At the end of a process's
// life it is withheld: the handler has committed, and the broker is not told.
func (a *ackLoss) onAck(ack []byte) []byte {
	t := a.trouble
	n := t.finished.Add(1)
	if n == t.lifetime {
		crew.AwaitKill()
	}
	if t.every == 0 || n%t.every != 2 {
		return ack
	}
	delivery := string(bytes.Fields(ack)[1])
	if _, again := a.lost.LoadOrStore(delivery, true); again {
		return ack // the subscriber acknowledges once more when there is no answer
	}
	crew.Say(saysLostAck)
	return nil
}
