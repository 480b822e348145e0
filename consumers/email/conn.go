package email

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/wneessen/go-mail/smtp"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/oneline"
)

// A conn is a connection to the server. It serves one mail at a time.
//
// The dialogue is held through go-mail's smtp.Client, and not its mail.Client. That one
// does not say whether the end of the data was written, does not watch the context once
// it is connected, and says QUIT after a body that it could not complete: net/textproto
// ends the data before the next command, so that a server takes half a mail for whole.
type conn struct {
	set    *settings
	wire   *wire
	client *smtp.Client

	stop   func() bool   // ends the watch over the mail's context
	least  time.Duration // what must be left of its time when the data ends
	reused bool          // it has served a mail before
	usable bool          // nothing is under way, and it may serve another
	idle   *time.Timer   // while it is in the pool
}

// hold binds the connection to a mail's context.
func (c *conn) hold(ctx context.Context) {
	deadline, _ := ctx.Deadline() // there is one: see deliver and Check
	_ = c.wire.SetDeadline(deadline)
	c.wire.unread.Store(mostReplies)
	c.least = time.Until(deadline) / 10
	w := c.wire
	c.stop = context.AfterFunc(ctx, func() { _ = w.SetDeadline(time.Unix(1, 0)) })
}

// release undoes hold. It returns false if the context has ended meanwhile, after
// which the connection is of no use.
func (c *conn) release() bool {
	if c.stop == nil {
		return false
	}
	in := c.stop()
	c.stop = nil
	return in && c.wire.SetDeadline(time.Time{}) == nil
}

// drop closes the connection without a word. It does not close it through the client,
// let alone with QUIT: see conn.
func (c *conn) drop() {
	c.usable = false
	if c.stop != nil {
		c.stop()
		c.stop = nil
	}
	if c.wire != nil {
		_ = c.wire.Close()
		c.wire = nil
	}
}

// quit takes leave of the server. Whatever it answers, the mails are sent.
func (c *conn) quit() {
	const patience = 2 * time.Second
	_ = c.wire.SetDeadline(time.Now().Add(patience))
	_ = c.client.Quit()
	c.drop()
}

// dial connects and goes as far as one comes without a mail. Nothing can have been
// sent yet, and nothing that goes wrong is a mail's fault.
func (c *conn) dial(ctx context.Context) error {
	var dialer net.Dialer
	raw, err := dialer.DialContext(ctx, "tcp", c.set.addr)
	if err != nil {
		return oncemill.ProviderAway(fmt.Errorf("email: connect to %s: %w", c.set.addr, err))
	}
	c.wire, c.reused = &wire{Conn: raw}, false
	c.hold(ctx)
	if err := c.introduce(ctx); err != nil {
		c.drop()
		return err
	}
	c.usable = true
	return nil
}

func (c *conn) introduce(ctx context.Context) (err error) {
	var under net.Conn = c.wire
	if c.set.mode == ImplicitTLS {
		encrypted := tls.Client(c.wire, c.set.tls)
		if err := encrypted.HandshakeContext(ctx); err != nil {
			return c.untrusted(ctx, err)
		}
		under = encrypted
	}
	if c.client, err = smtp.NewClient(under, c.set.host); err != nil {
		return c.before(ctx, stepGreeting, err)
	}
	if err := c.client.Hello(c.set.localName); err != nil {
		return c.before(ctx, stepEHLO, err)
	}
	if c.set.mode == STARTTLS {
		if err := c.encrypt(ctx); err != nil {
			return err
		}
	}
	return c.authenticate(ctx)
}

func (c *conn) encrypt(ctx context.Context) error {
	if offered, _ := c.client.Extension("STARTTLS"); !offered {
		return oncemill.ProviderAway(fmt.Errorf("email: STARTTLS: %s does not offer it, so nothing was sent: use another port, or set Sender.TLS to ImplicitTLS, or to NoTLS for a server on this host", c.set.addr))
	}
	err := c.client.StartTLS(c.set.tls)
	switch {
	case err == nil:
		return nil
	case asReply(stepSTARTTLS, err) != nil:
		return c.before(ctx, stepSTARTTLS, err)
	}
	return c.untrusted(ctx, err)
}

// untrusted says why there is no encryption.
func (c *conn) untrusted(ctx context.Context, err error) error {
	var wrong *tls.CertificateVerificationError
	if errors.As(err, &wrong) {
		return oncemill.ProviderAway(fmt.Errorf("email: TLS handshake: the certificate of %s is not trusted (see Sender.TLSConfig): %s", c.set.addr, oneline.Of(err.Error(), 300)))
	}
	return oncemill.ProviderAway(explain(ctx, stepTLS, err))
}

// before is for what goes wrong before a mail's turn.
func (c *conn) before(ctx context.Context, at step, err error) error {
	if reply := asReply(at, err); reply != nil {
		return oncemill.ProviderAway(reply)
	}
	return oncemill.ProviderAway(explain(ctx, at, err))
}

// failed is for what goes wrong with a mail before the end of its data was sent. The
// server has not taken it.
func (c *conn) failed(ctx context.Context, at step, err error) error {
	reply := asReply(at, err)
	if reply == nil {
		c.usable = false
		return oncemill.DidNotHappen(explain(ctx, at, err))
	}
	if reply.Code == 421 { // the server closes the connection
		c.usable = false
	}
	return reply.verdict()
}

// begin offers the mail, as far as the server's word that it takes its sender.
func (c *conn) begin(ctx context.Context, l *letter) error {
	if err := c.fits(l); err != nil {
		return err
	}
	c.client.SkipSMTPUTF8(!l.utf8)
	err := c.client.Mail(l.from)
	if err == nil {
		return nil
	}
	err = c.failed(ctx, stepMAIL, err)
	var reply *ReplyError
	if errors.As(err, &reply) && !l.ownFrom && reply.Code != 552 {
		// The sender is the configuration's, and all mails have it.
		return oncemill.ProviderAway(fmt.Errorf("%w (see Sender.From and Sender.ReturnPath)", reply))
	}
	return err
}

// fits compares the mail with what the server has said of itself.
func (c *conn) fits(l *letter) error {
	if takes, _ := c.client.Extension("SMTPUTF8"); l.utf8 && !takes {
		return wrong("to", "from, cc, bcc or reply_to has an address that is not ASCII, and the server does not take such (it has no SMTPUTF8): write domains in their ASCII form, xn--...")
	}
	_, size := c.client.Extension("SIZE")
	if most, err := strconv.ParseInt(strings.TrimSpace(size), 10, 64); err == nil && most > 0 && int64(len(l.data)) > most {
		return wrong("payload", "makes a mail of %d bytes: the server takes at most %d", len(l.data), most)
	}
	return nil
}

// finish has the mail sent to all of its recipients or to none.
func (c *conn) finish(ctx context.Context, l *letter) (reply string, err error) {
	if err := c.address(ctx, l); err != nil {
		return "", err
	}
	w, err := c.client.Data()
	if err != nil {
		return "", c.abandon(c.failed(ctx, stepDATA, err))
	}
	// From here to the reply the connection is good for nothing else.
	c.usable = false
	if err := c.write(ctx, w, l); err != nil {
		return "", err
	}
	return c.end(ctx, w, l)
}

// address names the recipients. If one is refused, nobody gets the mail: a part of
// them could neither be called a success nor be tried again.
func (c *conn) address(ctx context.Context, l *letter) error {
	var refused refusals
	for _, to := range l.recipients {
		err := c.client.Rcpt(to)
		if err == nil {
			continue
		}
		reply := asReply(stepRCPT, err)
		if reply == nil || reply.Code == 421 {
			return c.failed(ctx, stepRCPT, err)
		}
		reply.Recipient = strings.Trim(to, "<>")
		refused = append(refused, reply)
	}
	if len(refused) == 0 {
		return nil
	}
	return c.abandon(refused.verdict(len(l.recipients)))
}

// abandon takes back a mail that was begun, and returns err.
func (c *conn) abandon(err error) error {
	if c.usable && c.client.Reset() != nil {
		c.usable = false
	}
	return err
}
