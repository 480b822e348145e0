package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/oncemill/oncemill/examples/internal/crew"
	"github.com/oncemill/oncemill/testcontainers/smtpserver"
)

// serveMail is the provider of e-mail. What goes wrong with a mail is by its order's
// number, not at random: so each does often enough in a small run too.
func serveMail(ctx context.Context, s setting) error {
	o := &postOffice{setting: s, names: map[int]string{}, come: map[string]int{}, struck: map[string]bool{}}
	server, err := smtpserver.Start(smtpserver.Options{
		Dir: s.Dir, Users: map[string]string{mailUser: mailPassword}, RequireTLS: true, Faults: o.faults(),
	})
	if err != nil {
		return err
	}
	crew.Say(server.Addr())
	<-ctx.Done()
	return server.Close()
}

// A postOffice chooses an SMTP server's faults.
type postOffice struct {
	setting setting
	mu      sync.Mutex
	names   map[int]string  // of clients, by connection
	come    map[string]int  // how often a client has come to its moment
	struck  map[string]bool // what has gone wrong already
}

// cycle is how many orders there are to each kind of fault's one.
const cycle = 40

// faults are in the order in which they are looked at.
func (o *postOffice) faults() []smtpserver.Fault {
	const ever, once = true, false
	return []smtpserver.Fault{
		{At: smtpserver.Hello, When: o.greeted}, // this is no fault
		{At: smtpserver.EndOfData, Freeze: true, When: o.kills(afterRequest)},
		{At: smtpserver.Accepted, Freeze: true, When: o.kills(afterEffect)},

		{At: smtpserver.Greeting, Code: 421, Text: "Too many connections", When: everyConnection(20, temporary)},
		{At: smtpserver.Recipient, Code: 550, Text: "No such user", When: o.strikes(5, ever, refused)},
		{At: smtpserver.Recipient, Code: 450, Text: "Mailbox is busy", When: o.strikes(9, once, temporary)},
		{At: smtpserver.Body, Drop: true, When: o.strikes(15, once, cutBefore)},
		{At: smtpserver.EndOfData, Code: 451, Text: "Try again later", When: o.strikes(19, once, temporary)},
		{At: smtpserver.EndOfData, Code: 554, Text: "This looks like spam", When: o.strikes(25, ever, refused)},
		{At: smtpserver.EndOfData, Drop: true, When: o.strikes(29, once, lostBoth)},
		{At: smtpserver.Accepted, Drop: true, When: o.strikes(3, once, lostReply)},
		{At: smtpserver.Accepted, Freeze: true, When: o.strikes(13, once, lostReply)},
		{At: smtpserver.Accepted, Drop: true, When: o.strikes(23, once, lostReply)},
		{At: smtpserver.Accepted, Freeze: true, When: o.strikes(33, once, lostReply)},
		{At: smtpserver.Accepted, Delay: 300 * time.Millisecond, When: o.strikes(35, once, slow)},
	}
}

// strikes has a fault happen to one order in each cycle: whenever it comes, or the
// first time only.
func (o *postOffice) strikes(remainder int, ever bool, f fault) func(smtpserver.Event) bool {
	return func(e smtpserver.Event) bool {
		n := orderOf(e)
		if n == 0 || n%cycle != remainder {
			return false
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		what := fmt.Sprint(f.says, n)
		if o.struck[what] && !ever {
			return false
		}
		o.struck[what] = true
		f.say()
		return true
	}
}

// orderOf returns the number of the order that a mail is about: its recipient is
// order-7@example.com.
func orderOf(e smtpserver.Event) int {
	address := strings.TrimPrefix(e.Argument, "TO:<")
	if len(e.Recipients) > 0 {
		address = e.Recipients[0]
	}
	order, _, _ := strings.Cut(address, "@")
	return numberOf(order)
}

// everyConnection has a fault happen to one connection in so many.
func everyConnection(every int, f fault) func(smtpserver.Event) bool {
	return func(e smtpserver.Event) bool {
		if e.Connection%every != 0 {
			return false
		}
		f.say()
		return true
	}
}

// helloName is what a worker says in EHLO. It has in it when the worker is to be
// killed at a moment that only the server sees: with STARTTLS nobody else does.
func helloName(s setting) string {
	at := "spared"
	switch s.Moment {
	case afterRequest:
		at = "after-request"
	case afterEffect:
		at = "after-effect"
	}
	return fmt.Sprintf("worker-%d-%d-%d.%s.localhost", s.Place, s.Life, s.Lifetime, at)
}

func (o *postOffice) greeted(e smtpserver.Event) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.names[e.Connection] = e.Argument
	return false
}

// kills has a worker killed that has come to its moment. The server does not answer.
func (o *postOffice) kills(m moment) func(smtpserver.Event) bool {
	return func(e smtpserver.Event) bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		name := o.names[e.Connection]
		var s setting
		if _, err := fmt.Sscanf(name, "worker-%d-%d-%d.", &s.Place, &s.Life, &s.Lifetime); err != nil {
			return false
		}
		if s.Moment = m; helloName(s) != name {
			return false
		}
		o.come[name]++
		if o.come[name] != s.Lifetime {
			return false
		}
		sayKill(s.Place, s.Life)
		return true
	}
}
