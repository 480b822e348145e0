package smtpserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"os"
	"slices"
	"sync"

	"github.com/emersion/go-smtp"
)

// Options say how to run a server. The zero value is one with STARTTLS on a free port,
// without users, that keeps nothing on disk.
type Options struct {
	// Port is the TCP port on 127.0.0.1. 0 means a free one.
	Port int

	// Dir is where the ledger is written to and the certificate kept, for other
	// processes to read. It is made if it is not there; what a server before has left
	// in it is used again. "": nothing is written.
	Dir string

	// Users are who may send, by name, with their passwords. With some, nobody may send
	// without AUTH. nil: everybody may.
	Users map[string]string

	// Mechanisms are those of AUTH, of PLAIN and LOGIN. nil means both.
	Mechanisms []string

	// NoSTARTTLS leaves STARTTLS out, ImplicitTLS encrypts from the start, and
	// RequireTLS refuses mails on connections that are not encrypted.
	NoSTARTTLS, ImplicitTLS, RequireTLS bool

	// NoSMTPUTF8 leaves SMTPUTF8 out.
	NoSMTPUTF8 bool

	// MaxBytes is the largest mail, which the server tells its clients. 0: no limit.
	MaxBytes int64

	// Faults are what goes wrong from the start: see Script.
	Faults []Fault

	// Seed makes the choices of Fault.Rate the same ones in each run.
	Seed uint64
}

// A Server is an SMTP server inside this process. Its methods may be called from many
// goroutines.
type Server struct {
	options Options
	keys    *keys
	smtp    *smtp.Server
	listen  net.Listener
	served  chan error
	book    *book
	script  *script

	mu       sync.Mutex
	conns    map[*link]struct{}
	accepted int  // connections, since the start
	over     bool // no more of them

	closing sync.Once
	closed  error
}

// Start starts a server. Close ends it.
func Start(options Options) (*Server, error) {
	s := &Server{options: options, served: make(chan error, 1), conns: map[*link]struct{}{}, script: newScript(options.Seed)}
	s.script.set(options.Faults)
	if err := s.start(); err != nil {
		s.served <- nil
		return nil, errors.Join(fmt.Errorf("start the SMTP server: %w", err), s.Close())
	}
	go func() { s.served <- s.smtp.Serve(&listener{s.listen, s}) }()
	return s, nil
}

func (s *Server) start() (err error) {
	for _, m := range s.options.Mechanisms {
		if m != "PLAIN" && m != "LOGIN" {
			return fmt.Errorf("the mechanism %q is not PLAIN or LOGIN", m)
		}
	}
	if s.options.Dir != "" {
		if err := os.MkdirAll(s.options.Dir, 0o700); err != nil {
			return err
		}
	}
	if s.keys, err = loadKeys(s.options.Dir); err != nil {
		return err
	}
	if s.book, err = openBook(s.options.Dir); err != nil {
		return err
	}
	s.smtp = smtp.NewServer(smtp.BackendFunc(s.session))
	s.smtp.Domain = "localhost"
	s.smtp.EnableSMTPUTF8 = !s.options.NoSMTPUTF8
	s.smtp.MaxMessageBytes = s.options.MaxBytes
	s.smtp.AllowInsecureAuth = true // the session knows better: see AuthMechanisms
	s.smtp.ErrorLog = log.New(io.Discard, "", 0)
	s.listen, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", s.options.Port))
	return err
}

// Addr returns the server's host:port.
func (s *Server) Addr() string { return s.listen.Addr().String() }

// ClientTLS returns a configuration with which clients trust the server.
func (s *Server) ClientTLS() *tls.Config { return s.keys.client() }

// Script replaces the faults. Those of an earlier call are forgotten, with their
// counts.
func (s *Server) Script(faults ...Fault) { s.script.set(faults) }

// Ledger returns the mails that were accepted, in the order in which they were.
func (s *Server) Ledger() []Mail { return s.book.all() }

// Await returns when there are as many mails in the ledger, or with ctx's error.
func (s *Server) Await(ctx context.Context, mails int) error { return s.book.await(ctx, mails) }

// Connections returns how many connections there were so far, and how many there are.
func (s *Server) Connections() (sofar, open int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accepted, len(s.conns)
}

// CloseConnections closes those that are open, as a server does that has waited for
// too long.
func (s *Server) CloseConnections() {
	s.mu.Lock()
	open := slices.Collect(maps.Keys(s.conns))
	s.mu.Unlock()
	for _, c := range open {
		c.Close()
	}
}

// Close ends the server and all connections, and returns when they have ended. Calling
// it again does nothing.
func (s *Server) Close() error {
	s.closing.Do(func() {
		if s.listen != nil {
			s.closed = s.end()
		}
		if s.book != nil {
			s.closed = errors.Join(s.closed, s.book.close())
		}
	})
	return s.closed
}

func (s *Server) end() error {
	_ = s.listen.Close()
	s.mu.Lock()
	s.over = true // connections that were accepted just now are closed at once
	s.mu.Unlock()
	s.CloseConnections()
	err := <-s.served
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	_ = s.smtp.Shutdown(context.Background()) // waits for those that serve connections
	return err
}
