package groupcommit_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"fmt"
	"net"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/oncemill/oncemill/testcontainers/internal/lot"
)

// A kind is a statement of the protocol, or of the handler.
type kind string

const (
	toBegin    kind = "begin"
	toPrepare  kind = "prepare" // a statement of Oncemill's
	toClaim    kind = "claim"
	toLook     kind = "look" // at claims that were there
	toEffect   kind = "effect"
	toRaise    kind = "raise"
	toFlush    kind = "flush" // several of the last two
	toUnclaim  kind = "unclaim"
	toSend     kind = "send"
	toCommit   kind = "commit"
	toRollback kind = "rollback"
	toElse     kind = "else"

	toAnswer kind = "answer" // a commit, which Postgres does
)

// kindOf recognises a statement by its text.
func kindOf(text string) kind {
	text = strings.ToUpper(strings.Join(strings.Fields(strings.ReplaceAll(text, `"`, "")), " "))
	for _, k := range []struct {
		kind
		begins, has string
	}{
		{toFlush, "PREPARE", "; EXECUTE "},
		{toUnclaim, "", "DELETE FROM ONCEMILL.CLAIMS"},
		{toClaim, "", "INSERT INTO ONCEMILL.CLAIMS"},
		{toSend, "", "INSERT INTO ONCEMILL.OUTBOX"},
		{toLook, "SELECT ", "FROM ONCEMILL."},
		{toEffect, "INSERT INTO EFFECTS", ""},
		{toRaise, "UPDATE HOT", ""},
		{toBegin, "BEGIN", ""},
		{toCommit, "COMMIT", ""},
		{toRollback, "ROLLBACK", ""},
	} {
		if strings.HasPrefix(text, k.begins) && strings.Contains(text, k.has) {
			return k.kind
		}
	}
	return toElse
}

// A loss is how a connection breaks at a statement.
type loss string

const (
	none       loss = ""
	terminated loss = "terminated" // its session is ended before the statement is sent
	raced      loss = "raced"      // its session is ended while the statement runs
	cut        loss = "cut"        // the statement is not sent
	unanswered loss = "unanswered" // the statement is sent, and its answer lost
)

// oneIn is of how many statements of a kind have a loss, where transactions have many
// messages, and where they have one.
var oneIn = map[kind][2]int{
	toBegin: {40, 200}, toPrepare: {60, 50}, toClaim: {40, 200}, toLook: {12, 40}, toEffect: {600, 200}, toRaise: {80, 40}, toFlush: {25, 25},
	toUnclaim: {3, 3}, toSend: {40, 120}, toCommit: {15, 50}, toRollback: {8, 30},
}

// certain is which statement of each kind has a loss in any case.
const certain = 5

// A saboteur dials for lib/pq, and breaks its connections.
type saboteur struct {
	w  *worker
	db *sql.DB // for ending sessions

	mu   sync.Mutex
	seen map[kind]int
}

func (s *saboteur) Dial(network, address string) (net.Conn, error) {
	return s.DialContext(context.Background(), network, address)
}

func (s *saboteur) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return s.DialContext(ctx, network, address)
}

func (s *saboteur) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &wire{Conn: conn, s: s, prepared: make(map[string]kind)}, nil
}

// choose draws what becomes of the next statement of a kind.
func (s *saboteur) choose(k kind) loss {
	s.mu.Lock()
	s.seen[k]++
	n := s.seen[k]
	s.mu.Unlock()
	odds, ok := oneIn[k]
	if !s.w.Failpoints || !ok {
		return none
	}
	draw, one := lot.Of(s.w.Seed, "wire", s.w.Name, k, n), odds[0]
	if s.w.Batch < 2 {
		one = odds[1]
	}
	if draw.IntN(one) > 0 && n != certain {
		return none
	}
	l := []loss{terminated, raced, cut, unanswered, unanswered}[draw.IntN(5)]
	s.w.Say("failpoint %s %s", k, l)
	return l
}

// terminate ends the session of a connection, and returns when it has ended.
func (s *saboteur) terminate(conn net.Conn) {
	port := conn.LocalAddr().(*net.TCPAddr).Port
	_, err := s.db.Exec(`SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE client_port = $1 AND datname = current_database()`, port)
	if err != nil {
		s.w.Say("amiss - cannot end a session: %v", err)
	}
}

// A wire is a connection to Postgres. It reads along in what lib/pq sends, which is whole
// messages. lib/pq does not read and write at a time.
type wire struct {
	net.Conn
	s        *saboteur
	started  bool
	prepared map[string]kind // by the statement's name
	effects  int             // of the transaction

	mu   sync.Mutex
	last kind
	lose bool // the next answer
}

func (c *wire) Write(sent []byte) (int, error) {
	if !c.started { // the first message has no type
		c.started = true
		return c.Conn.Write(sent)
	}
	for _, k := range c.kinds(sent) {
		c.suffer(k)
		switch c.s.choose(k) {
		case terminated:
			c.s.terminate(c.Conn)
		case raced:
			go c.s.terminate(c.Conn)
		case cut:
			_ = c.Conn.Close()
			return 0, syscall.EPIPE
		case unanswered:
			c.mu.Lock()
			c.lose = true
			c.mu.Unlock()
		}
	}
	return c.Conn.Write(sent)
}

// kinds returns what is executed or prepared by what is sent.
func (c *wire) kinds(sent []byte) (found []kind) {
	for len(sent) >= 5 {
		size := 1 + int(binary.BigEndian.Uint32(sent[1:]))
		if size > len(sent) {
			return found
		}
		body := sent[5:size]
		switch first, rest, _ := bytes.Cut(body, []byte{0}); sent[0] {
		case 'Q':
			found = append(found, c.executed(kindOf(string(first)), string(first)))
		case 'P':
			text, _, _ := bytes.Cut(rest, []byte{0})
			k := kindOf(string(text))
			c.prepared[string(first)] = k
			if len(first) > 0 && k != toElse {
				found = append(found, toPrepare)
			}
		case 'B':
			name, _, _ := bytes.Cut(rest, []byte{0})
			found = append(found, c.executed(c.prepared[string(name)], ""))
		}
		sent = sent[size:]
	}
	return found
}

// preparesEffect finds under which name a text prepares the statement that writes effects.
var preparesEffect = regexp.MustCompile(`PREPARE (\S+) .*AS INSERT INTO effects`)

// executed counts a transaction's effects, to know how large they become.
func (c *wire) executed(k kind, text string) kind {
	switch k {
	case toBegin:
		c.effects = 0
	case toEffect:
		c.effects++
	case toFlush:
		for _, found := range preparesEffect.FindAllStringSubmatch(text, -1) {
			c.effects += strings.Count(text, "EXECUTE "+found[1]+"(")
		}
	}
	c.s.w.grown(c.effects)
	c.mu.Lock()
	c.last = k
	c.mu.Unlock()
	return k
}

// suffer has the process die or freeze, if that is its fault, and if there is more than
// one effect at stake where there can be.
func (c *wire) suffer(k kind) {
	w := c.s.w
	least := 1
	if w.Batch > 1 {
		least = 3
	}
	if at, ok := faultsAt[w.Fault]; ok && at == k && c.effects >= least {
		w.Suffer(w.Fault == freezeInCommit, w.After, fmt.Sprint(c.effects))
	}
}

// faultsAt are the statements at which processes have their faults.
var faultsAt = map[fault]kind{
	dieBeforeCommit: toCommit, dieAfterCommit: toAnswer, freezeInCommit: toCommit,
}

func (c *wire) Read(into []byte) (int, error) {
	n, err := c.Conn.Read(into)
	c.mu.Lock()
	last, lose := c.last, c.lose
	c.mu.Unlock()
	switch {
	case err == nil && lose:
		_ = c.Conn.Close()
		return 0, syscall.ECONNRESET
	case bytes.Contains(into[:n], []byte("\x00C40P01\x00")):
		c.s.w.Say("deadlock %s", last)
	case last == toCommit && n > 0:
		c.suffer(toAnswer)
	}
	return n, err
}

// grown says how large transactions have become.
func (w *worker) grown(effects int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if effects > w.largest {
		w.largest = effects
		w.Say("largest %d", effects)
	}
}

// losable are the kinds of statements at which connections break.
var losable = []kind{toBegin, toPrepare, toClaim, toLook, toEffect, toRaise, toFlush, toUnclaim, toSend, toCommit, toRollback}
