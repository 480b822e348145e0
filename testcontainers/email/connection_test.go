package email_test

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/email"
	"github.com/oncemill/oncemill/testcontainers/smtpserver"
)

func TestMailsShareAConnection(t *testing.T) {
	t.Parallel()
	p := newPost(t, smtpserver.Options{})
	for range 20 {
		_, err := p.send(order())
		must(t, err)
	}
	p.wantLedger(20)
	p.wantConnections(1)
}

// Also after a mail that was refused, of which nothing is left.
func TestARefusedMailLeavesAConnectionFitForTheNext(t *testing.T) {
	t.Parallel()
	for _, at := range []smtpserver.Point{smtpserver.Recipient, smtpserver.Data, smtpserver.EndOfData} {
		p := newPost(t, smtpserver.Options{Faults: []smtpserver.Fault{{At: at, Code: 550, Times: 1}}})
		_, err := p.send(order())
		want(t, err, never)
		m := order()
		m.To = []string{"bob@example.com"}
		_, err = p.send(m)
		must(t, err)
		p.wantConnections(1)
		p.wantLedger(1)
		if mails := p.server.Ledger(); len(mails[0].Recipients) != 1 || mails[0].Recipients[0] != "bob@example.com" {
			t.Errorf("the mail is %+v", mails[0])
		}
	}
}

// A server that has closed an idle connection, or has had enough of it, is no failure
// of the mail that comes next.
func TestAStaleConnectionIsReplaced(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*post){
		"closed by the server": func(p *post) { p.server.CloseConnections() },
		"dropped at RSET":      func(p *post) { p.server.Script(smtpserver.Fault{At: smtpserver.Reset, Drop: true}) },
		"421 to RSET":          func(p *post) { p.server.Script(smtpserver.Fault{At: smtpserver.Reset, Code: 421}) },
		"502 to RSET":          func(p *post) { p.server.Script(smtpserver.Fault{At: smtpserver.Reset, Code: 502}) },
		"dropped at MAIL":      func(p *post) { p.server.Script(smtpserver.Fault{At: smtpserver.MailFrom, Drop: true, Nth: 1}) },
		"421 to MAIL":          func(p *post) { p.server.Script(smtpserver.Fault{At: smtpserver.MailFrom, Code: 421, Nth: 1}) },
		"452 to MAIL":          func(p *post) { p.server.Script(smtpserver.Fault{At: smtpserver.MailFrom, Code: 452, Nth: 1}) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPost(t, smtpserver.Options{})
			_, err := p.send(order())
			must(t, err)
			spoil(p)
			_, err = p.send(order())
			must(t, err)
			p.wantConnections(2)
			p.wantLedger(2)
		})
	}
}

// Once only: a server that drops every connection is away.
func TestAServerThatDropsEveryConnection(t *testing.T) {
	t.Parallel()
	p := newPost(t, smtpserver.Options{})
	_, err := p.send(order())
	must(t, err)
	p.server.Script(smtpserver.Fault{At: smtpserver.MailFrom, Drop: true})
	_, err = p.send(order())
	want(t, err, notHappened)
	p.wantConnections(2)
	p.wantLedger(1)
}

func TestAnIdleConnectionIsClosed(t *testing.T) {
	t.Parallel()
	p := newPost(t, smtpserver.Options{})
	p.sender.IdleTime = 50 * time.Millisecond
	_, err := p.send(order())
	must(t, err)
	eventually(t, "the connection is closed", func() bool {
		_, open := p.server.Connections()
		return open == 0
	})
	_, err = p.send(order())
	must(t, err)
	p.wantConnections(2)
}

func TestANegativeIdleTimeKeepsNoConnection(t *testing.T) {
	t.Parallel()
	p := newPost(t, smtpserver.Options{})
	p.sender.IdleTime = -1
	for range 3 {
		_, err := p.send(order())
		must(t, err)
	}
	p.wantConnections(3)
}

func TestManyMailsAtATimeKeepToMaxConns(t *testing.T) {
	t.Parallel()
	p := newPost(t, smtpserver.Options{})
	p.sender.MaxConns = 3
	const mails = 60
	claims := make([]*oncemill.Claim, mails)
	for i := range claims {
		claims[i] = p.claim(oncemill.ClaimOptions{Lease: time.Hour})
	}
	ids := sync.Map{}
	var all sync.WaitGroup
	for _, claim := range claims {
		all.Go(func() {
			receipt, err := p.sendUnder(within(t), claim, order())
			if err != nil {
				t.Error(err)
			}
			ids.Store(receipt.MessageID, true)
		})
	}
	all.Wait()
	p.wantLedger(mails)
	for _, m := range p.server.Ledger() {
		if _, sent := ids.LoadAndDelete(m.MessageID); !sent {
			t.Errorf("%s is in the ledger twice, or by no claim", m.MessageID)
		}
	}
	if sofar, _ := p.server.Connections(); sofar > 3 {
		t.Errorf("there were %d connections", sofar)
	}
}

// A mail whose turn comes too late is not begun: it would easily be left in doubt.
func TestAMailDoesNotWaitForAConnectionForever(t *testing.T) {
	t.Parallel()
	p := newPost(t, smtpserver.Options{Faults: []smtpserver.Fault{{At: smtpserver.Accepted, Freeze: true}}})
	p.sender.MaxConns, p.sender.Timeout = 1, 2*time.Second
	first := make(chan error, 1)
	claim := p.claim(oncemill.ClaimOptions{})
	go func() {
		_, err := p.sendUnder(within(t), claim, order())
		first <- err
	}()
	must(t, p.server.Await(within(t), 1))
	_, err := p.send(order())
	want(t, err, notHappened, "Sender.MaxConns")
	want(t, <-first, unknown)
	p.wantLedger(1)
}

func TestAClosedSender(t *testing.T) {
	t.Parallel()
	p := newPost(t, smtpserver.Options{})
	_, err := p.send(order())
	must(t, err)
	must(t, p.sender.Close())
	eventually(t, "the connection is closed", func() bool {
		_, open := p.server.Connections()
		return open == 0
	})
	_, err = p.send(order())
	want(t, err, notHappened)
	if !errors.Is(err, email.ErrClosed) {
		t.Errorf("the error is %v", err)
	}
}

func TestRSETAndQUITDoNotMatterAfterTheMail(t *testing.T) {
	t.Parallel()
	for _, at := range []smtpserver.Point{smtpserver.Reset, smtpserver.Quit} {
		p := newPost(t, smtpserver.Options{Faults: []smtpserver.Fault{{At: at, Freeze: true}}})
		p.sender.IdleTime = -1
		_, err := p.send(order())
		must(t, err)
		p.server.CloseConnections() // so that Close need not wait for the QUIT
	}
}
