package smtpserver

import (
	"math/rand/v2"
	"sync"
	"time"
)

// A Point is one in the dialogue at which something can go wrong.
type Point string

// The points, in their order. At all but the last the mail is not accepted.
const (
	Greeting  Point = "greeting"
	Hello     Point = "EHLO"
	TLS       Point = "STARTTLS"
	Auth      Point = "AUTH"
	MailFrom  Point = "MAIL"
	Recipient Point = "RCPT"
	Data      Point = "DATA"        // the command
	Body      Point = "body"        // its first byte has come; a Code is replied at its end
	EndOfData Point = "end of data" // all of it has come; the mail is not in the ledger
	Accepted  Point = "accepted"    // the mail is in the ledger; the client does not know
	Reset     Point = "RSET"
	Noop      Point = "NOOP"
	Quit      Point = "QUIT"
)

// A Fault is something that goes wrong. What goes wrong is Code, Drop or Freeze, or a
// Delay alone or before one of them.
type Fault struct {
	At Point // required

	// Code is a reply, such as 450, in place of the server's own, and Text its words,
	// which may begin with an enhanced code such as 4.2.1. At Accepted the mail is in the
	// ledger nevertheless. A reply of 421 ends the connection.
	Code int
	Text string

	// Drop closes the connection. Freeze keeps it open, and no answer ever comes; at
	// Body the server does not read on either, so that the client cannot send on.
	Drop   bool
	Freeze bool

	// Delay is how long the server waits first.
	Delay time.Duration

	// Nth has the fault happen only when the point is passed for the nth time since
	// Script, from 1. 0: each time.
	Nth int

	// Times is how often it happens at most. 0: no limit.
	Times int

	// Rate is the share of the times at which it happens. 0: all.
	Rate float64

	// When says whether it happens. Several goroutines call it. nil: it does.
	When func(Event) bool
}

// An Event is a point passed.
type Event struct {
	At         Point
	Connection int      // the how manyth, from 1
	Argument   string   // of the command, such as "TO:<ann@example.com>"
	From       string   // from Body on
	Recipients []string // from Body on
	MessageID  string   // from EndOfData on
}

// A script decides which faults happen.
type script struct {
	mu     sync.Mutex
	faults []*scripted
	random *rand.Rand
}

type scripted struct {
	Fault
	passed, happened int
}

func newScript(seed uint64) *script {
	return &script{random: rand.New(rand.NewPCG(seed, seed))}
}

func (s *script) set(faults []Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
	for _, f := range faults {
		s.faults = append(s.faults, &scripted{Fault: f})
	}
}

// next returns the first fault that happens at an event, or nil.
func (s *script) next(e Event) *Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.faults {
		if f.At != e.At || f.When != nil && !f.When(e) {
			continue
		}
		f.passed++
		switch {
		case f.Nth > 0 && f.passed != f.Nth:
		case f.Times > 0 && f.happened >= f.Times:
		case f.Rate > 0 && s.random.Float64() >= f.Rate:
		default:
			f.happened++
			return &f.Fault
		}
	}
	return nil
}
