package email_test

import (
	"crypto/tls"
	"encoding/base64"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/oncemill/oncemill/consumers/email"
	"github.com/oncemill/oncemill/testcontainers/smtpserver"
)

const password = "päss=wörd,1"

// A way is one to be sent with, or not.
type way struct {
	name   string
	server smtpserver.Options
	change func(p *post)
	says   string // "": it is sent
}

func ways() []way {
	users := map[string]string{"shop": password}
	login := func(p *post) { p.sender.Username, p.sender.Password = "shop", password }
	plaintext := func(p *post) { p.sender.TLS = email.NoTLS; login(p) }
	return []way{
		{"STARTTLS", smtpserver.Options{RequireTLS: true}, func(*post) {}, ""},
		{"implicit TLS", smtpserver.Options{ImplicitTLS: true, RequireTLS: true}, func(p *post) { p.sender.TLS = email.ImplicitTLS }, ""},
		{"no TLS to loopback", smtpserver.Options{NoSTARTTLS: true}, func(p *post) { p.sender.TLS = email.NoTLS }, ""},
		{"STARTTLS is missing", smtpserver.Options{NoSTARTTLS: true}, func(*post) {}, "STARTTLS: 127.0.0.1"},
		{"STARTTLS is required", smtpserver.Options{RequireTLS: true}, func(p *post) { p.sender.TLS = email.NoTLS }, "530 5.7.0 Must issue a STARTTLS"},
		{"unknown certificate", smtpserver.Options{}, func(p *post) { p.sender.TLSConfig = nil }, "not trusted (see Sender.TLSConfig)"},
		{"unknown certificate, implicit TLS", smtpserver.Options{ImplicitTLS: true},
			func(p *post) { p.sender.TLS, p.sender.TLSConfig = email.ImplicitTLS, nil }, "not trusted (see Sender.TLSConfig)"},
		{"certificate for another name", smtpserver.Options{}, func(p *post) {
			p.sender.TLSConfig = p.server.ClientTLS()
			p.sender.TLSConfig.ServerName = "smtp.example.com"
		}, "not trusted"},
		{"TLS to a server without", smtpserver.Options{NoSTARTTLS: true}, func(p *post) { p.sender.TLS = email.ImplicitTLS }, "TLS handshake"},
		{"TLS too old", smtpserver.Options{}, func(p *post) {
			p.sender.TLSConfig = p.server.ClientTLS()
			p.sender.TLSConfig.MaxVersion = tls.VersionTLS10
		}, "TLS handshake"},
		{"AUTH", smtpserver.Options{Users: users}, login, ""},
		{"AUTH PLAIN", smtpserver.Options{Users: users, Mechanisms: []string{"PLAIN"}}, login, ""},
		{"AUTH LOGIN", smtpserver.Options{Users: users, Mechanisms: []string{"LOGIN"}}, login, ""},
		{"AUTH LOGIN chosen", smtpserver.Options{Users: users}, func(p *post) { login(p); p.sender.Auth = email.Login }, ""},
		{"AUTH without TLS to loopback", smtpserver.Options{Users: users, NoSTARTTLS: true}, plaintext, ""},
		{"wrong password", smtpserver.Options{Users: users}, func(p *post) { login(p); p.sender.Password += "!" }, "535 5.7.8"},
		{"wrong password, LOGIN", smtpserver.Options{Users: users, Mechanisms: []string{"LOGIN"}}, func(p *post) { login(p); p.sender.Password += "!" }, "535 5.7.8"},
		{"no AUTH", smtpserver.Options{Users: users}, func(*post) {}, "530 5.7.0 Authentication required"},
		{"AUTH is not offered", smtpserver.Options{}, login, "the server offers []"},
		{"mechanism is not offered", smtpserver.Options{Users: users}, func(p *post) { login(p); p.sender.Auth = email.ScramSHA256 }, "the server offers [PLAIN LOGIN], and we have SCRAM-SHA-256"},
		{"the server repeats the password", smtpserver.Options{Users: users, Faults: []smtpserver.Fault{
			{At: smtpserver.Auth, Code: 535, Text: "5.7.8 not " + base64.StdEncoding.EncodeToString([]byte("\x00shop\x00"+password))}}}, login, "not shown"},
	}
}

// What is wrong with the configuration is no mail's fault, sends nothing, and is found
// by Check.
func TestWhoIsTrustedWithAMail(t *testing.T) {
	t.Parallel()
	for _, w := range ways() {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			p := newPost(t, w.server)
			w.change(p)
			checked := p.sender.Check(within(t))
			_, err := p.send(order())
			if w.says == "" {
				must(t, checked)
				must(t, err)
				m := p.server.Ledger()[0]
				if m.Encrypted == (p.sender.TLS == email.NoTLS) || m.User != p.sender.Username {
					t.Errorf("the mail is %+v", m)
				}
				return
			}
			want(t, err, notHappened, w.says)
			if !isAway(err) {
				t.Errorf("%v counts towards a dead letter", err)
			}
			p.wantLedger(0)
			if checked == nil && !strings.HasPrefix(err.Error(), "email: MAIL") { // which Check does not try
				t.Error("Check has found nothing")
			}
			for _, err := range []error{err, checked} {
				if err != nil && (strings.Contains(err.Error(), password) || strings.Contains(err.Error(), base64.StdEncoding.EncodeToString([]byte(password)))) {
					t.Errorf("the error tells the password: %v", err)
				}
			}
		})
	}
}

// Check leaves no connection behind.
func TestCheckLeavesTheServer(t *testing.T) {
	t.Parallel()
	p := newPost(t, smtpserver.Options{})
	must(t, p.sender.Check(within(t)))
	eventually(t, "the connection is closed", func() bool {
		_, open := p.server.Connections()
		return open == 0
	})
	p.wantConnections(1)
	p.server.Script(smtpserver.Fault{At: smtpserver.Noop, Code: 421})
	want(t, p.sender.Check(within(t)), notHappened, "NOOP was refused: 421")
}

// Whatever answers at the port, it is cut off.
func TestAServerThatIsNone(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		talk func(net.Conn)
		says string
	}{
		"HTTP":          {func(c net.Conn) { c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) }, "does not speak SMTP"},
		"endless line":  {flood("2"), "more than any reply"},
		"endless reply": {flood("220-hello\r\n"), "more than any reply"},
		"not ready":     {func(c net.Conn) { c.Write([]byte("250 hello\r\n")) }, "the server answers 250 hello"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			must(t, err)
			defer listener.Close()
			talked := make(chan struct{})
			go func() {
				defer close(talked)
				if conn, err := listener.Accept(); err == nil {
					c.talk(conn)
					conn.Close()
				}
			}()
			sender := &email.Sender{Addr: listener.Addr().String()}
			want(t, sender.Check(within(t)), notHappened, c.says)
			<-talked
		})
	}
}

// flood says the same again and again until nobody listens.
func flood(words string) func(net.Conn) {
	return func(c net.Conn) {
		c.SetDeadline(time.Now().Add(patience))
		for {
			if _, err := c.Write([]byte(strings.Repeat(words, 1000))); err != nil {
				return
			}
		}
	}
}

// A server's words reach no log as they are.
func TestTheWordsOfARefusalAreCleaned(t *testing.T) {
	t.Parallel()
	p := newPost(t, smtpserver.Options{Faults: []smtpserver.Fault{
		{At: smtpserver.Recipient, Code: 550, Text: "5.1.1 no\x1b[2J \u202eevil " + strings.Repeat("x", 1000)}}})
	_, err := p.send(order())
	want(t, err, never, "550 5.1.1 no [2J evil xxx")
	if text := err.Error(); len(text) > 400 || strings.ContainsAny(text, "\x1b\u202e") {
		t.Errorf("the error is %q", text)
	}
}
