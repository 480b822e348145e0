package email_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/email"
	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/smtpserver"
)

const (
	happened    = oncemill.Happened
	notHappened = oncemill.NotHappened
	never       = oncemill.Never
	unknown     = oncemill.Unknown
	away        = oncemill.Verdict("away") // not happened, and an ErrProviderAway
)

type outcome struct {
	name   string
	fault  smtpserver.Fault
	want   oncemill.Verdict
	ledger int
	says   string
}

// short is for a server that does not answer.
const short = 300 * time.Millisecond

func outcomes() (all []outcome) {
	refused := func(at smtpserver.Point, code int, text string, want oncemill.Verdict) {
		all = append(all, outcome{name: text, fault: smtpserver.Fault{At: at, Code: code, Text: text}, want: want, says: text})
	}
	gone := func(at smtpserver.Point, want oncemill.Verdict) {
		ledger := 0
		if at == smtpserver.Accepted {
			ledger = 1
		}
		all = append(all,
			outcome{"dropped", smtpserver.Fault{At: at, Drop: true}, want, ledger, "broken"},
			outcome{"frozen", smtpserver.Fault{At: at, Freeze: true}, want, ledger, "no answer within the time"})
	}
	// Before a mail's turn nothing is a mail's fault.
	for _, at := range []smtpserver.Point{smtpserver.Greeting, smtpserver.Hello, smtpserver.TLS, smtpserver.Auth} {
		refused(at, 421, "421 closing", away)
		refused(at, 454, "454 not now", away)
		refused(at, 554, "554 no", away)
		gone(at, away)
	}
	refused(smtpserver.Auth, 535, "5.7.8 wrong password", away)
	// The sender is the Sender's, and so all mails'.
	refused(smtpserver.MailFrom, 550, "5.7.1 not your address", away)
	refused(smtpserver.MailFrom, 451, "4.7.0 later", away)
	refused(smtpserver.MailFrom, 552, "5.3.4 too large", never)
	for _, at := range []smtpserver.Point{smtpserver.MailFrom, smtpserver.Recipient, smtpserver.Data} {
		refused(at, 421, "421 closing", away)
		refused(at, 452, "4.3.1 full", away)
		refused(at, 503, "5.5.1 bad sequence", away)
		refused(at, 530, "5.7.0 STARTTLS first", away)
		gone(at, notHappened)
	}
	refused(smtpserver.Recipient, 450, "4.2.1 greylisted", notHappened)
	refused(smtpserver.Recipient, 550, "5.1.1 no such user", never)
	refused(smtpserver.Recipient, 554, "5.7.1 <ann@example.com>: Relay access denied", away)
	refused(smtpserver.Recipient, 550, "relay not permitted", away)
	refused(smtpserver.Recipient, 550, "5.7.54 SMTP; Unable to relay recipient in non-accepted domain", away)
	refused(smtpserver.Recipient, 550, "5.1.1 User unknown in relay recipient table", never)
	refused(smtpserver.Recipient, 554, "5.7.1 the relay of our postal service has closed", never)
	refused(smtpserver.Data, 451, "4.7.1 later", notHappened)
	refused(smtpserver.Data, 554, "5.6.0 no", never)
	refused(smtpserver.EndOfData, 451, "4.6.0 later", notHappened)
	refused(smtpserver.EndOfData, 452, "4.3.1 full", notHappened)
	refused(smtpserver.EndOfData, 421, "421 closing", notHappened)
	refused(smtpserver.EndOfData, 530, "5.7.0 authenticate", notHappened)
	refused(smtpserver.EndOfData, 550, "5.7.1 spam", never)
	refused(smtpserver.EndOfData, 552, "5.3.4 too large", never)
	// Nobody can tell these two apart. That is what in doubt means.
	gone(smtpserver.EndOfData, unknown)
	gone(smtpserver.Accepted, unknown)
	all = append(all,
		outcome{"an answer that is none", smtpserver.Fault{At: smtpserver.Accepted, Code: 399}, unknown, 1, "the server answers 399"},
		outcome{"accepted in other words", smtpserver.Fault{At: smtpserver.Accepted, Code: 251}, happened, 1, ""},
		outcome{"slow", smtpserver.Fault{At: smtpserver.Accepted, Delay: 10 * time.Millisecond}, happened, 1, ""})
	return all
}

func TestEveryStepHasItsOutcome(t *testing.T) {
	t.Parallel()
	claims := (&oncemill.Inbox{DB: testcontainers.Postgres(t).DB}).Consumer("mails")
	for _, o := range outcomes() {
		t.Run(string(o.fault.At)+"/"+o.name, func(t *testing.T) {
			t.Parallel()
			p := openPost(t, smtpserver.Options{Users: map[string]string{"shop": "secret"}, Faults: []smtpserver.Fault{o.fault}}, claims)
			p.sender.Username, p.sender.Password = "shop", "secret"
			if o.fault.Freeze {
				p.sender.Timeout = short
			}
			claim, err := claims.Claim(within(t), t.Name(), oncemill.ClaimOptions{})
			must(t, err)
			receipt, err := p.sendUnder(within(t), claim, order())
			verdict := oncemill.VerdictOf(err)
			if errors.Is(err, oncemill.ErrProviderAway) && verdict == notHappened {
				verdict = away
			}
			if verdict != o.want {
				t.Errorf("the verdict is %q of %v, want %q", verdict, err, o.want)
			}
			if o.says != "" && (err == nil || !strings.Contains(err.Error(), o.says)) {
				t.Errorf("the error is %v, and should say %q", err, o.says)
			}
			if err == nil && receipt.MessageID != "<"+claim.ProviderKey()+"@example.com>" {
				t.Errorf("the receipt is %+v", receipt)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the error tells the password: %v", err)
			}
			p.wantLedger(o.ledger)
			p.recovers()
		})
	}
}

// recovers wants the next mail to be sent, whatever was before.
func (p *post) recovers() {
	p.t.Helper()
	n := len(p.server.Ledger())
	p.server.Script()
	claim, err := p.claims.Claim(within(p.t), p.t.Name()+" again", oncemill.ClaimOptions{})
	must(p.t, err)
	for range 3 { // a Timeout that was short for the fault is short for a busy machine too
		if _, err = p.sendUnder(within(p.t), claim, order()); oncemill.VerdictOf(err) != notHappened {
			break
		}
	}
	if err != nil && oncemill.VerdictOf(err) != unknown || err == nil && len(p.server.Ledger()) != n+1 {
		p.t.Errorf("the next mail: %v", err)
	}
}

// A mail that names its own sender may be refused for that.
func TestASenderOfTheMailsOwnIsRefusedForGood(t *testing.T) {
	t.Parallel()
	p := newPost(t, smtpserver.Options{Faults: []smtpserver.Fault{{At: smtpserver.MailFrom, Code: 553, Text: "5.1.8 no such domain", Times: 1}}})
	m := order()
	m.From = "me@nowhere.invalid"
	_, err := p.send(m)
	want(t, err, never, "MAIL was refused: 553 5.1.8")
	var reply *email.ReplyError
	if !errors.As(err, &reply) || reply.Code != 553 || reply.Step != "MAIL" {
		t.Errorf("%#v", reply)
	}
	p.sender.ReturnPath = "" // unchanged: the next mail has the Sender's
	_, err = p.send(order())
	must(t, err)
	p.wantConnections(1)
}

// The server is away in the middle of a body that does not fit into any buffer: the
// end of it was not sent.
func TestABodyThatCannotBeWrittenWasNotTaken(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]smtpserver.Fault{
		"dropped": {At: smtpserver.Body, Drop: true},
		"frozen":  {At: smtpserver.Body, Freeze: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPost(t, smtpserver.Options{Faults: []smtpserver.Fault{fault}})
			p.sender.MaxBytes = 64 << 20
			if fault.Freeze {
				p.sender.Timeout = 3 * time.Second
			}
			m := order()
			m.Text = strings.Repeat("All work and no play makes Jack a dull boy.\n", 350_000)
			_, err := p.send(m)
			want(t, err, notHappened, "email: body:")
			p.server.CloseConnections()
			p.wantLedger(0)
		})
	}
}

// Whoever ends the data has to hear the reply.
func TestADataIsNotEndedWhenItsTimeIsOver(t *testing.T) {
	t.Parallel()
	p := newPost(t, smtpserver.Options{Faults: []smtpserver.Fault{{At: smtpserver.Data, Delay: 1900 * time.Millisecond}}})
	p.sender.Timeout = 2 * time.Second
	_, err := p.send(order())
	want(t, err, notHappened)
	p.wantLedger(0)
}

// The context that Guard gives, which ends before the lease does, wins over Timeout.
func TestTheEndOfTheLeaseEndsTheWait(t *testing.T) {
	t.Parallel()
	for at, verdict := range map[smtpserver.Point]oncemill.Verdict{
		smtpserver.Greeting: notHappened, smtpserver.Recipient: notHappened, smtpserver.Accepted: unknown,
	} {
		t.Run(string(at), func(t *testing.T) {
			t.Parallel()
			p := newPost(t, smtpserver.Options{Faults: []smtpserver.Fault{{At: at, Freeze: true}}})
			claim := p.claim(oncemill.ClaimOptions{Lease: 2 * time.Second})
			_, err := p.sendUnder(within(t), claim, order())
			want(t, err, verdict)
			if late := time.Since(claim.Deadline()); late > time.Second {
				t.Errorf("it took until %v after the lease's end", late)
			}
		})
	}
}

func TestACancelledContextEndsTheWait(t *testing.T) {
	t.Parallel()
	p := newPost(t, smtpserver.Options{Faults: []smtpserver.Fault{{At: smtpserver.Accepted, Freeze: true}}})
	ctx, cancel := context.WithCancelCause(within(t))
	sent := make(chan error, 1)
	claim := p.claim(oncemill.ClaimOptions{})
	go func() {
		// Without Claim.Context, which would let it go on for a while.
		_, err := p.sender.Send(msg(oncemill.ContextWithClaim(ctx, claim), payload(t, order())))
		sent <- err
	}()
	must(t, p.server.Await(within(t), 1))
	cancel(errors.New("the router closes"))
	err := <-sent
	want(t, err, unknown, "given up: the router closes", "may have taken the mail <"+claim.ProviderKey())
}

func TestACancelledContextSendsNothing(t *testing.T) {
	t.Parallel()
	p := newPost(t, smtpserver.Options{})
	ctx, cancel := context.WithCancel(within(t))
	claim := p.claim(oncemill.ClaimOptions{})
	cancel()
	_, err := p.sender.Send(msg(oncemill.ContextWithClaim(ctx, claim), payload(t, order())))
	want(t, err, notHappened)
	p.wantLedger(0)
}

func TestAServerThatIsNotThere(t *testing.T) {
	t.Parallel()
	p := newPost(t, smtpserver.Options{})
	must(t, p.server.Close())
	_, err := p.send(order())
	want(t, err, notHappened, "connect to 127.0.0.1:")
	if !errors.Is(err, oncemill.ErrProviderAway) {
		t.Errorf("%v would count towards a dead letter", err)
	}
	if err := p.sender.Check(within(t)); !errors.Is(err, oncemill.ErrProviderAway) {
		t.Errorf("Check: %v", err)
	}
}
