package smtpserver

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/mail"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

// A session is what go-smtp asks about a connection's mails.
type session struct {
	server *Server
	link   *link
	user   string // who has authenticated
	mail   Mail
}

func (s *Server) session(c *smtp.Conn) (smtp.Session, error) {
	l, ok := c.Conn().(*link)
	if !ok {
		return nil, fmt.Errorf("unexpected connection %T", c.Conn())
	}
	return &session{server: s, link: l}, nil
}

func (s *session) Reset() { s.mail = Mail{} }

func (s *session) Logout() error { return nil }

// AuthMechanisms offers none on a connection that others can read.
func (s *session) AuthMechanisms() []string {
	o := s.server.options
	switch {
	case len(o.Users) == 0, !s.link.encrypted() && !o.NoSTARTTLS:
		return nil
	case o.Mechanisms != nil:
		return o.Mechanisms
	}
	return []string{"PLAIN", "LOGIN"}
}

func (s *session) Auth(mechanism string) (sasl.Server, error) {
	if !s.link.encrypted() && !s.server.options.NoSTARTTLS {
		return nil, refusal(523, 7, "TLS is required")
	}
	check := func(user, password string) error {
		if known, ok := s.server.options.Users[user]; !ok || known != password {
			return smtp.ErrAuthFailed
		}
		s.user = user
		return nil
	}
	switch mechanism {
	case "PLAIN":
		return sasl.NewPlainServer(func(_, user, password string) error { return check(user, password) }), nil
	case "LOGIN":
		return &login{check: check}, nil
	}
	return nil, smtp.ErrAuthUnknownMechanism
}

// login is the server's side of AUTH LOGIN.
type login struct {
	check func(user, password string) error
	asked int
	user  string
}

func (l *login) Next(response []byte) (challenge []byte, over bool, err error) {
	if l.asked == 0 && response != nil { // an initial response is the name
		l.asked = 1
	}
	l.asked++
	switch l.asked {
	case 1:
		return []byte("Username:"), false, nil
	case 2:
		l.user = string(response)
		return []byte("Password:"), false, nil
	}
	return nil, true, l.check(l.user, string(response))
}

func refusal(code, subject int, text string) error {
	return &smtp.SMTPError{Code: code, EnhancedCode: smtp.EnhancedCode{code / 100, subject, 0}, Message: text}
}

func (s *session) Mail(from string, options *smtp.MailOptions) error {
	switch o := s.server.options; {
	case o.RequireTLS && !s.link.encrypted():
		return refusal(530, 7, "Must issue a STARTTLS command first")
	case len(o.Users) > 0 && s.user == "":
		return refusal(530, 7, "Authentication required")
	}
	s.mail = Mail{From: from, UTF8: options.UTF8}
	return nil
}

func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	s.mail.Recipients = append(s.mail.Recipients, to)
	return nil
}

// Data takes a mail. From the moment at which it is in the ledger it is accepted,
// whatever the client hears.
func (s *session) Data(r io.Reader) error {
	data, err := s.read(r)
	if err != nil {
		return err
	}
	m := s.mail
	m.Data, m.Time, m.MessageID = string(data), time.Now(), messageID(data)
	m.Connection, m.User, m.Encrypted = s.link.number, s.user, s.link.encrypted()
	if err := s.fault(EndOfData, m); err != nil {
		return err
	}
	if err := s.server.book.add(m); err != nil {
		return refusal(451, 3, "The ledger: "+err.Error())
	}
	if err := s.fault(Accepted, m); err != nil {
		return err
	}
	// As an error, which is how go-smtp lets one choose the words.
	return &smtp.SMTPError{Code: 250, EnhancedCode: smtp.EnhancedCode{2, 0, 0}, Message: "OK: queued as " + m.MessageID}
}

// read reads a mail to its end, also one that is too large.
func (s *session) read(r io.Reader) ([]byte, error) {
	data := make([]byte, 1)
	n, err := r.Read(data)
	if err == nil {
		if fault := s.server.script.next(Event{At: Body, Connection: s.link.number, From: s.mail.From, Recipients: s.mail.Recipients}); fault != nil {
			if err := s.link.suffer(fault); err != nil {
				return nil, err
			}
		}
	}
	rest, err := io.ReadAll(r)
	return append(data[:n], rest...), err
}

// fault has happen what is due at a point.
func (s *session) fault(at Point, m Mail) error {
	fault := s.server.script.next(Event{At: at, Connection: m.Connection, From: m.From, Recipients: m.Recipients, MessageID: m.MessageID})
	if fault == nil {
		return nil
	}
	return s.link.suffer(fault)
}

// suffer returns the reply that a fault makes, nil if it makes none, and errGone if
// nothing can be replied any more.
func (l *link) suffer(f *Fault) error {
	if !l.strike(f) {
		return errGone
	}
	if f.Code == 0 {
		return nil
	}
	if f.Code == 421 {
		l.lastWords.Store(true)
	}
	return &smtp.SMTPError{Code: f.Code, EnhancedCode: smtp.NoEnhancedCode, Message: f.words()}
}

var errGone = errors.New("the connection is gone")

func messageID(data []byte) string {
	m, err := mail.ReadMessage(bytes.NewReader(data))
	if err != nil {
		return ""
	}
	return m.Header.Get("Message-ID")
}
