package email

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/mail"
	"os"
	"slices"
	"strings"
	"time"
)

// settings are a Sender's fields, with defaults in place.
type settings struct {
	addr, host         string
	mode               TLSMode
	tls                *tls.Config
	username, password string
	auth               Mechanism
	from               *mail.Address // nil: none
	returnPath         *mail.Address // nil: none
	localName          string
	timeout            time.Duration
	messageIDDomain    string
	maxBytes           int
}

// setUp checks the fields and fills in defaults, once.
func (s *Sender) setUp() error {
	s.start.Do(func() {
		if s.wrong = s.validate(); s.wrong != nil {
			return
		}
		s.set.timeout = orDefault(s.Timeout, DefaultTimeout)
		s.set.maxBytes = orDefault(s.MaxBytes, DefaultMaxBytes)
		s.set.mode, s.set.auth, s.set.messageIDDomain = s.TLS, s.Auth, s.MessageIDDomain
		s.set.username, s.set.password = s.Username, s.Password
		if s.set.localName = s.LocalName; s.LocalName == "" {
			s.set.localName = hostName()
		}
		s.set.tls = new(tls.Config)
		if s.TLSConfig != nil {
			s.set.tls = s.TLSConfig.Clone()
		}
		if s.set.tls.ServerName == "" {
			s.set.tls.ServerName = s.set.host
		}
		s.pool.open(&s.set, orDefault(s.MaxConns, DefaultMaxConns), orDefault(s.IdleTime, DefaultIdleTime))
	})
	return s.wrong
}

func orDefault[T int | time.Duration](value, otherwise T) T {
	if value == 0 {
		return otherwise
	}
	return value
}

// hostName returns what to say in EHLO: many servers want something that looks like
// a name of the DNS.
func hostName() string {
	name, err := os.Hostname()
	if err != nil || !isDomain(name) {
		return "localhost"
	}
	return name
}

// validate says which field is wrong, and what to do about it.
func (s *Sender) validate() error {
	if err := s.validateServer(); err != nil {
		return err
	}
	if err := s.validateMails(); err != nil {
		return err
	}
	switch {
	case s.Timeout < 0:
		return fmt.Errorf("email: Sender.Timeout is %v: must not be negative, 0 means %v", s.Timeout, DefaultTimeout)
	case s.MaxConns < 0:
		return fmt.Errorf("email: Sender.MaxConns is %d: must not be negative, 0 means %d", s.MaxConns, DefaultMaxConns)
	case s.MaxBytes < 0:
		return fmt.Errorf("email: Sender.MaxBytes is %d: must not be negative, 0 means %d", s.MaxBytes, DefaultMaxBytes)
	case s.LostReply != Hold && s.LostReply != Resend:
		return fmt.Errorf("email: Sender.LostReply is %q: must be Hold or Resend", s.LostReply)
	}
	return nil
}

func (s *Sender) validateServer() error {
	if s.Addr == "" {
		return errors.New("email: Sender.Addr is empty: set it to the server's host:port, such as smtp.example.com:587")
	}
	host, port, err := net.SplitHostPort(s.Addr)
	if err != nil || host == "" || port == "" {
		return fmt.Errorf("email: Sender.Addr is %.80q: must be host:port, such as smtp.example.com:587", s.Addr)
	}
	s.set.addr, s.set.host = s.Addr, host
	switch {
	case s.TLS != STARTTLS && s.TLS != ImplicitTLS && s.TLS != NoTLS:
		return fmt.Errorf("email: Sender.TLS is %q: must be STARTTLS, ImplicitTLS or NoTLS", s.TLS)
	case s.TLS == NoTLS && s.Username != "" && !isLoopback(host):
		return fmt.Errorf("email: Sender.TLS is NoTLS, and Sender.Username is set: the password would go to %s in the clear; use STARTTLS or ImplicitTLS", host)
	case s.Username == "" && s.Password != "":
		return errors.New("email: Sender.Password is set without Sender.Username: set both or neither")
	case s.Username != "" && s.Password == "":
		return errors.New("email: Sender.Username is set without Sender.Password: set both or neither")
	case s.Auth != "" && !slices.Contains(mechanisms, s.Auth):
		return fmt.Errorf("email: Sender.Auth is %q: must be one of %v, or empty for the best that the server offers", s.Auth, mechanisms)
	case s.Auth != "" && s.Username == "":
		return errors.New("email: Sender.Auth is set without Sender.Username: set both, or neither")
	case s.LocalName != "" && !isDomain(s.LocalName) && !isLiteral(s.LocalName):
		return fmt.Errorf("email: Sender.LocalName is %.80q: must be a name such as app.example.com, or an address in brackets", s.LocalName)
	}
	return nil
}

func (s *Sender) validateMails() (err error) {
	if s.From != "" {
		if s.set.from, err = parseAddress(s.From); err != nil {
			return fmt.Errorf("email: Sender.From %w", err)
		}
	}
	if s.ReturnPath != "" {
		if s.set.returnPath, err = parseAddress(s.ReturnPath); err != nil {
			return fmt.Errorf("email: Sender.ReturnPath %w", err)
		}
	}
	if s.MessageIDDomain != "" && !isDomain(s.MessageIDDomain) {
		return fmt.Errorf("email: Sender.MessageIDDomain is %.80q: must be a domain in ASCII, such as example.com", s.MessageIDDomain)
	}
	return nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}

// isDomain tells whether a name has the form of one in the DNS.
func isDomain(name string) bool {
	if len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "-") != label {
			return false
		}
		for _, r := range label {
			if r != '-' && r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') {
				return false
			}
		}
	}
	return true
}

// isLiteral tells whether a name is an address in brackets.
func isLiteral(name string) bool {
	inner, ok := strings.CutPrefix(name, "[")
	inner, closed := strings.CutSuffix(inner, "]")
	return ok && closed && net.ParseIP(strings.TrimPrefix(inner, "IPv6:")) != nil
}
