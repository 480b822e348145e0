package smtpserver

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A listener gives go-smtp the links of a server.
type listener struct {
	net.Listener
	server *Server
}

func (l *listener) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.server.connect(raw), nil
}

func (s *Server) connect(raw net.Conn) *link {
	l := &link{raw: raw, server: s, greets: true}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	var conn net.Conn = raw
	if s.options.ImplicitTLS {
		conn = tls.Server(raw, s.keys.server())
		l.secure.Store(true)
	}
	l.use(conn)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.accepted++
	l.number = s.accepted
	if s.over {
		raw.Close()
		return l
	}
	s.conns[l] = struct{}{}
	return l
}

// A link is a connection as go-smtp sees it: without TLS, which the link does itself,
// and without the commands that a fault has kept from it. go-smtp offers no place for
// faults at the greeting and at DATA.
//
// Reads and writes come from the one goroutine that serves the connection.
type link struct {
	raw    net.Conn
	server *Server
	number int

	secure    atomic.Bool
	lastWords atomic.Bool // the connection ends after the next reply

	ctx    context.Context // ends with the link, and with it what waits
	cancel context.CancelFunc
	close  sync.Once

	conn   net.Conn // raw, or TLS on it
	reader *bufio.Reader
	rest   []byte // what was read of a line and not given to go-smtp yet

	greets  bool  // nothing was written yet
	command Point // what go-smtp is answering
	inData  bool  // what is read is a mail
}

func (l *link) use(conn net.Conn) { l.conn, l.reader = conn, bufio.NewReader(conn) }

func (l *link) encrypted() bool { return l.secure.Load() }

func (l *link) Close() error {
	var err error
	l.close.Do(func() {
		l.cancel()
		err = l.raw.Close()
		l.server.mu.Lock()
		delete(l.server.conns, l)
		l.server.mu.Unlock()
	})
	return err
}

func (l *link) LocalAddr() net.Addr                { return l.raw.LocalAddr() }
func (l *link) RemoteAddr() net.Addr               { return l.raw.RemoteAddr() }
func (l *link) SetDeadline(t time.Time) error      { return l.raw.SetDeadline(t) }
func (l *link) SetReadDeadline(t time.Time) error  { return l.raw.SetReadDeadline(t) }
func (l *link) SetWriteDeadline(t time.Time) error { return l.raw.SetWriteDeadline(t) }

// Read gives go-smtp a line at a time, or in a mail whatever there is.
func (l *link) Read(p []byte) (int, error) {
	for len(l.rest) == 0 {
		if l.lastWords.Load() {
			l.Close()
			return 0, io.EOF
		}
		if l.inData {
			return l.reader.Read(p)
		}
		line, err := l.reader.ReadSlice('\n')
		if err != nil && err != bufio.ErrBufferFull {
			return 0, err
		}
		pass, err := l.heard(line)
		if err != nil {
			return 0, err
		}
		if pass {
			l.rest = bytes.Clone(line)
		}
	}
	n := copy(p, l.rest)
	l.rest = l.rest[n:]
	return n, nil
}

// points are the commands at which something can go wrong.
var points = map[string]Point{
	"EHLO": Hello, "HELO": Hello, "STARTTLS": TLS, "AUTH": Auth, "MAIL": MailFrom, "RCPT": Recipient,
	"DATA": Data, "RSET": Reset, "NOOP": Noop, "QUIT": Quit,
}

// heard decides whether go-smtp gets to see a command.
func (l *link) heard(line []byte) (pass bool, err error) {
	verb, argument, _ := strings.Cut(strings.TrimRight(string(line), "\r\n"), " ")
	point, known := points[strings.ToUpper(verb)]
	l.command = point
	if !known {
		return true, nil
	}
	if fault := l.server.script.next(Event{At: point, Connection: l.number, Argument: argument}); fault != nil {
		if !l.strike(fault) {
			return false, io.EOF
		}
		if fault.Code != 0 {
			return false, l.reply(fault)
		}
	}
	if point == TLS && !l.server.options.NoSTARTTLS && !l.encrypted() {
		return false, l.encrypt()
	}
	return true, nil
}

// strike does what a fault does before any reply. It returns false if there can be
// none.
func (l *link) strike(f *Fault) bool {
	if f.Delay > 0 {
		timer := time.NewTimer(f.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-l.ctx.Done():
			return false
		}
	}
	switch {
	case f.Drop:
		l.Close()
		return false
	case f.Freeze && f.At == Body:
		<-l.ctx.Done()
		return false
	case f.Freeze:
		// Until the client gives up, or the server ends.
		_, _ = io.Copy(io.Discard, l.reader)
		l.Close()
		return false
	}
	return true
}

func (f *Fault) words() string {
	if f.Text == "" {
		return "This is on the script"
	}
	return f.Text
}

func (l *link) reply(f *Fault) error {
	_, err := fmt.Fprintf(l.conn, "%d %s\r\n", f.Code, f.words())
	if f.Code == 421 && err == nil {
		l.Close()
		return io.EOF
	}
	return err
}

func (l *link) encrypt() error {
	if _, err := io.WriteString(l.conn, "220 2.0.0 Ready to start TLS\r\n"); err != nil {
		return err
	}
	conn := tls.Server(l.raw, l.server.keys.server())
	if err := conn.HandshakeContext(l.ctx); err != nil {
		return err
	}
	l.use(conn) // what came in the clear is forgotten
	l.secure.Store(true)
	return nil
}

// Write passes on what go-smtp answers, a line at a time.
func (l *link) Write(p []byte) (int, error) {
	if l.greets {
		l.greets = false
		if instead, err := l.greet(); instead {
			return len(p), err
		}
	}
	// Before its reply to a mail go-smtp has read all of it.
	l.inData = l.command == Data && bytes.HasPrefix(p, []byte("354"))
	switch {
	case l.command == Hello && bytes.HasPrefix(p, []byte("250-")) && !l.server.options.NoSTARTTLS && !l.encrypted():
		l.command = ""
		p = append(bytes.Clone(p), "250-STARTTLS\r\n"...)
		_, err := l.conn.Write(p)
		return len(p) - len("250-STARTTLS\r\n"), err
	}
	return l.conn.Write(p)
}

// greet has happen what is due in place of the greeting, if something is.
func (l *link) greet() (instead bool, err error) {
	fault := l.server.script.next(Event{At: Greeting, Connection: l.number})
	if fault == nil {
		return false, nil
	}
	if !l.strike(fault) {
		return true, net.ErrClosed
	}
	if fault.Code == 0 {
		return false, nil
	}
	_, err = fmt.Fprintf(l.conn, "%d %s\r\n", fault.Code, fault.words())
	l.Close()
	return true, err
}
