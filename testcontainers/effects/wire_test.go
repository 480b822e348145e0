package effects_test

import (
	"bytes"
	"encoding/binary"
	"net"
	"strings"
	"sync"
)

// A watch finds out, from what is sent on one connection to Postgres, in which step of a
// claim a COMMIT comes: each step writes an event of its kind before it.
type watch struct {
	mu   sync.Mutex
	step string // the kind of the last event; "": none in this transaction
}

var kinds = []string{"claimed", "taken over", "settled", "released", "in doubt", "failed", "blocked"}

// commits returns the step whose COMMIT is in what is about to be sent. "": none.
func (w *watch) commits(sent []byte) (step string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(sent) == 0 {
		return ""
	}
	switch sent[0] {
	case 'B': // Bind: the parameters of a statement
		for _, kind := range kinds {
			parameter := binary.BigEndian.AppendUint32(nil, uint32(len(kind)))
			if bytes.Contains(sent, append(parameter, kind...)) {
				w.step = kind
			}
		}
	case 'Q':
		text := strings.ToUpper(string(sent[5:]))
		if strings.HasPrefix(text, "COMMIT") {
			step = w.step
		}
		w.step = "" // a transaction begins or ends
	}
	return step
}

// watchedConn gives the actor's fault its opportunities around COMMITs.
type watchedConn struct {
	net.Conn
	a     *performer
	watch watch
}

var aroundCommits = map[string]struct{ before, within fault }{
	"claimed":    {dieBeforeClaim, dieWithinClaim},
	"taken over": {dieBeforeClaim, dieWithinClaim},
	"settled":    {dieBeforeSettle, dieWithinSettle},
	"in doubt":   {dieBeforePark, dieWithinPark},
	"blocked":    {dieBeforePark, dieWithinPark}, // a redelivery that parks its message
	"released":   {dieBeforeRelease, dieWithinRelease},
}

func (c *watchedConn) Write(p []byte) (int, error) {
	step := c.watch.commits(p)
	faults, ours := aroundCommits[step]
	if ours {
		c.a.opportunity(faults.before, step)
	}
	n, err := c.Conn.Write(p)
	if ours {
		c.a.opportunity(faults.within, step)
	}
	return n, err
}

// requestConn gives the fault its opportunity when a request is on the wire.
type requestConn struct {
	net.Conn
	a *performer
}

func (c requestConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if bytes.HasPrefix(p, []byte("POST")) {
		c.a.opportunity(dieAfterWriting, "request")
	}
	return n, err
}
