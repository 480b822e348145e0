package email_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"go.uber.org/goleak"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/email"
	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/smtpserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is for what should happen soon, on a busy machine.
const patience = 30 * time.Second

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	t.Cleanup(cancel)
	return ctx
}

// A post is a mail server, somebody who sends mails through it, and the claims.
type post struct {
	t      *testing.T
	server *smtpserver.Server
	sender *email.Sender
	claims *oncemill.Consumer
	keys   atomic.Int64
}

func newPost(t *testing.T, options smtpserver.Options) *post {
	t.Helper()
	return openPost(t, options, (&oncemill.Inbox{DB: testcontainers.Postgres(t).DB}).Consumer("mails"))
}

func openPost(t *testing.T, options smtpserver.Options, claims *oncemill.Consumer) *post {
	t.Helper()
	server, err := smtpserver.Start(options)
	must(t, err)
	p := &post{t: t, server: server, claims: claims}
	p.sender = &email.Sender{Addr: server.Addr(), TLSConfig: server.ClientTLS(), From: "Shop <shop@example.com>", Timeout: patience}
	t.Cleanup(func() {
		if err := p.sender.Close(); err != nil {
			t.Errorf("close the sender: %v", err)
		}
		if err := server.Close(); err != nil {
			t.Errorf("close the server: %v", err)
		}
	})
	return p
}

// a mail with which nothing is wrong.
func order() email.Mail {
	return email.Mail{To: []string{"ann@example.com"}, Subject: "Your order", Text: "It is on its way."}
}

func payload(t testing.TB, m email.Mail) []byte {
	t.Helper()
	text, err := json.Marshal(m)
	must(t, err)
	return text
}

// claim claims another key.
func (p *post) claim(opts oncemill.ClaimOptions) *oncemill.Claim {
	p.t.Helper()
	c, err := p.claims.Claim(within(p.t), fmt.Sprint("mail-", p.keys.Add(1)), opts)
	must(p.t, err)
	return c
}

// send sends a mail under another claim.
func (p *post) send(m email.Mail) (email.Receipt, error) {
	p.t.Helper()
	return p.sendUnder(within(p.t), p.claim(oncemill.ClaimOptions{}), m)
}

func (p *post) sendUnder(ctx context.Context, claim *oncemill.Claim, m email.Mail) (email.Receipt, error) {
	p.t.Helper()
	ctx, cancel := claim.Context(ctx)
	defer cancel()
	return p.sender.Send(message.NewMessageWithContext(ctx, claim.Key(), payload(p.t, m)))
}

func (p *post) wantLedger(n int) {
	p.t.Helper()
	if mails := p.server.Ledger(); len(mails) != n {
		p.t.Errorf("the ledger has %d mails, want %d", len(mails), n)
	}
}

func (p *post) wantConnections(n int) {
	p.t.Helper()
	if sofar, _ := p.server.Connections(); sofar != n {
		p.t.Errorf("there were %d connections, want %d", sofar, n)
	}
}

func want(t *testing.T, err error, verdict oncemill.Verdict, says ...string) {
	t.Helper()
	if got := oncemill.VerdictOf(err); got != verdict {
		t.Errorf("the verdict is %q of %v, want %q", got, err, verdict)
	}
	for _, text := range says {
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("the error is %v, and should say %q", err, text)
		}
	}
}

func msg(ctx context.Context, payload []byte) *message.Message {
	return message.NewMessageWithContext(ctx, "1", payload)
}

// eventually waits until something that gives no signal has become true.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still not so: %s", what)
		}
	}
}
