package email

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
)

// What the zero values of a Sender's fields mean.
const (
	DefaultTimeout  = 30 * time.Second
	DefaultMaxConns = 10
	DefaultIdleTime = 15 * time.Second
	DefaultMaxBytes = 10 << 20
)

// ErrClosed means that a Sender is used after its Close.
var ErrClosed = errors.New("email: the Sender is closed")

// A TLSMode says how connections are encrypted.
type TLSMode string

const (
	// STARTTLS: the connection begins in the clear and has to be encrypted before
	// anything of a mail is sent. A server that does not offer STARTTLS gets nothing.
	// Usual on ports 587 and 25.
	STARTTLS TLSMode = ""

	// ImplicitTLS: the connection is encrypted from the start. Usual on port 465.
	ImplicitTLS TLSMode = "implicit"

	// NoTLS: nothing is encrypted. With a Username it is refused unless the server is
	// on this host.
	NoTLS TLSMode = "none"
)

// LostReply says what a Sender does in an attempt after one of which nobody knows
// whether it sent the mail.
type LostReply string

const (
	// Hold: it sends nothing and leaves the claim in doubt, for a person to resolve. A
	// mail is sent at most once.
	Hold LostReply = ""

	// Resend: it sends the mail again with the same Message-ID. A mail is sent at least
	// once; some mailboxes hide a second copy, and most do not. It takes a
	// middleware.Guard with a KeyLifetime, without which there is no such attempt.
	Resend LostReply = "resend"
)

// A Sender is a Watermill handler that sends a mail for each message, over SMTP. It
// runs under middleware.Guard, which claims the message's key and settles, releases
// or leaves in doubt the claim as the Sender's error says.
//
// Set the fields before the first message and leave them alone afterwards; do not
// copy it. Its methods may be called from many goroutines.
type Sender struct {
	// Addr is the server, as host:port. Required.
	Addr string

	// TLS is how connections are encrypted. The zero value is STARTTLS.
	TLS TLSMode

	// TLSConfig is for certificates that the system does not know, or of the client.
	// nil means the system's, and the name in Addr.
	TLSConfig *tls.Config

	// Username and Password are who we are to the server. "" means that we do not say.
	Username string
	Password string

	// Auth is the mechanism to say it with. "" means the best one that the server
	// offers, in the order of the constants.
	Auth Mechanism

	// From is the sender of mails that name none, such as "Shop <shop@example.com>".
	// "" means that each mail has to.
	From string

	// ReturnPath is the address that mails which cannot be delivered go back to. ""
	// means a mail's sender.
	ReturnPath string

	// LocalName is what EHLO says. "" means the name of this host.
	LocalName string

	// Timeout is how long sending one mail may take, with the wait for a connection.
	// The end of the claim's lease wins over it: give Guard.Timeout the same. 0 means
	// DefaultTimeout.
	Timeout time.Duration

	// MaxConns is the largest number of connections to the server at a time. 0 means
	// DefaultMaxConns.
	MaxConns int

	// IdleTime is how long a connection is kept for the next mail. 0 means
	// DefaultIdleTime, and a negative one that each mail gets a connection of its own.
	IdleTime time.Duration

	// MessageIDDomain is what follows the @ in a mail's Message-ID. Give it if several
	// installations have consumers of the same names. "" means the domain of the mail's
	// sender.
	MessageIDDomain string

	// LostReply says whether a mail is sent again of which nobody knows whether it was
	// sent. The zero value is Hold.
	LostReply LostReply

	// MaxBytes is the largest mail, as it is sent: attachments grow by a third. 0 means
	// DefaultMaxBytes.
	MaxBytes int

	// Decode makes a mail of a message, the same one every time. A message that is
	// wrong should give an *InputError; after any other error it is delivered again.
	// nil means DecodeJSON.
	Decode func(msg *message.Message) (Mail, error)

	// OnSettle writes rows that are to be there if and only if the mail was sent: it
	// runs in the transaction that settles the claim. key is the message's idempotency
	// key. Optional.
	OnSettle func(ctx context.Context, tx oncemill.Tx, key string, r Receipt) error

	start sync.Once
	wrong error // what validate says
	set   settings
	pool  pool
}

// A Receipt says that the server has taken a mail. It is what a claim is settled
// with, as JSON.
type Receipt struct {
	MessageID  string `json:"message_id"` // with its angle brackets
	Reply      string `json:"reply"`      // the server's words, which often have its own id of the mail
	Recipients int    `json:"recipients"`
}

// Handle is the handler. It returns no messages: to send some, wrap Send.
func (s *Sender) Handle(msg *message.Message) ([]*message.Message, error) {
	_, err := s.Send(msg)
	return nil, err
}

// Consume is Handle for Router.AddConsumerHandler.
func (s *Sender) Consume(msg *message.Message) error {
	_, err := s.Send(msg)
	return err
}

// Send does what Handle does, and returns the receipt, for a handler that returns
// messages about it:
//
//	func(msg *message.Message) ([]*message.Message, error) {
//		receipt, err := sender.Send(msg)
//		if err != nil {
//			return nil, err
//		}
//		return []*message.Message{sent(receipt)}, nil
//	}
//
// Messages that are returned beside an error that NeverWill marks are published when
// the claim is settled as failed.
func (s *Sender) Send(msg *message.Message) (Receipt, error) {
	claim, ok := oncemill.ClaimFromContext(msg.Context())
	if !ok {
		return Receipt{}, oncemill.ErrNoClaim
	}
	receipt, err := s.attempt(msg, effect{claim.ProviderKey(), claim.Attempt(), claim.FirstClaimed()})
	if err != nil {
		return Receipt{}, err
	}
	result, err := json.Marshal(receipt)
	if err != nil {
		return receipt, fmt.Errorf("email: it was sent, but its receipt %+v cannot be stored: %w", receipt, err)
	}
	claim.SetResult(result)
	if s.OnSettle != nil {
		key := claim.Key()
		claim.OnSettle(func(ctx context.Context, tx oncemill.Tx) error { return s.OnSettle(ctx, tx, key, receipt) })
	}
	return receipt, nil
}

// effect is what a Sender wants to know of a claim.
type effect struct {
	providerKey string
	attempt     int
	first       time.Time // of the first attempt
}

// attempt sends the mail, unless an earlier attempt may have.
func (s *Sender) attempt(msg *message.Message, e effect) (Receipt, error) {
	if e.attempt > 1 && s.LostReply != Resend {
		return Receipt{}, fmt.Errorf("email: attempt %d: nothing was sent, since an earlier attempt may have sent the mail: find out and resolve the claim, or set Sender.LostReply to Resend; with Hold, leave Guard.KeyLifetime zero", e.attempt)
	}
	receipt, err := s.send(msg, e)
	if e.attempt > 1 && err != nil && oncemill.VerdictOf(err) != oncemill.Unknown {
		// That this attempt sent nothing does not say that no other did.
		return Receipt{}, doubtError{err, e.attempt}
	}
	return receipt, err
}

// doubtError takes the verdict from an error.
type doubtError struct {
	error
	attempt int
}

func (e doubtError) Error() string {
	return fmt.Sprintf("attempt %d, which tells nothing of the ones before: %v", e.attempt, e.error)
}
func (e doubtError) Unwrap() error                   { return e.error }
func (e doubtError) EffectVerdict() oncemill.Verdict { return oncemill.Unknown }

func (s *Sender) send(msg *message.Message, e effect) (Receipt, error) {
	if err := s.setUp(); err != nil {
		return Receipt{}, oncemill.ProviderAway(err)
	}
	m, err := s.decode(msg)
	if err != nil {
		if oncemill.VerdictOf(err) == oncemill.Unknown {
			err = oncemill.DidNotHappen(err) // nothing was sent
		}
		return Receipt{}, err
	}
	l, err := s.set.compose(m, e)
	if err != nil {
		return Receipt{}, err
	}
	return s.deliver(msg.Context(), l)
}

// decode calls the user's function. One that panics has sent nothing.
func (s *Sender) decode(msg *message.Message) (m Mail, err error) {
	if s.Decode == nil {
		return DecodeJSON(msg)
	}
	defer func() {
		if panicked := recover(); panicked != nil {
			err = fmt.Errorf("email: Sender.Decode panicked: %v", panicked)
		}
	}()
	return s.Decode(msg)
}

// deliver gives a composed mail to the server.
func (s *Sender) deliver(ctx context.Context, l *letter) (Receipt, error) {
	ctx, cancel := context.WithTimeout(ctx, s.set.timeout)
	defer cancel()
	c, err := s.pool.take(ctx)
	if err != nil {
		return Receipt{}, err
	}
	defer func() { s.pool.give(c) }()
	err = c.begin(ctx, l)
	if c.reused && err != nil && !isInputError(err) {
		// Nothing of the mail was accepted, and it may be the connection's fault: the
		// server has closed it, or has had enough of it.
		c.drop()
		if err := c.dial(ctx); err != nil {
			return Receipt{}, err
		}
		err = c.begin(ctx, l)
	}
	if err != nil {
		return Receipt{}, err
	}
	reply, err := c.finish(ctx, l)
	if err != nil {
		return Receipt{}, err
	}
	return Receipt{MessageID: l.messageID, Reply: reply, Recipients: len(l.recipients)}, nil
}

// Check reports what is wrong with the fields, and whether the server takes us: it
// connects, encrypts, authenticates and leaves again. Call it before the router runs,
// so that a wrong password is found by the deployment and not by the messages.
func (s *Sender) Check(ctx context.Context) error {
	if err := s.setUp(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.set.timeout)
	defer cancel()
	c := &conn{set: &s.set}
	if err := c.dial(ctx); err != nil {
		return err
	}
	defer c.drop()
	if err := c.client.Noop(); err != nil {
		return c.failed(ctx, stepNoop, err)
	}
	c.quit()
	return nil
}

// Close closes the connections that are kept, and those in use when their mail is
// over. Close the router first.
func (s *Sender) Close() error {
	if s.setUp() == nil {
		s.pool.close()
	}
	return nil
}
