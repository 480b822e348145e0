package email

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/wneessen/go-mail/smtp"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/oneline"
)

// A Mechanism is a way to authenticate.
type Mechanism string

// Mechanisms, from the best to the last.
const (
	ScramSHA256 Mechanism = "SCRAM-SHA-256"
	ScramSHA1   Mechanism = "SCRAM-SHA-1"
	Plain       Mechanism = "PLAIN"
	Login       Mechanism = "LOGIN"
	CramMD5     Mechanism = "CRAM-MD5"
)

var mechanisms = []Mechanism{ScramSHA256, ScramSHA1, Plain, Login, CramMD5}

// authenticate says who we are. Whatever is wrong with that is not a mail's fault.
func (c *conn) authenticate(ctx context.Context) error {
	if c.set.username == "" {
		return nil
	}
	if _, encrypted := c.client.TLSConnectionState(); !encrypted && !c.isLocal() {
		return oncemill.ProviderAway(fmt.Errorf("email: AUTH: %s is not on this host, and the connection is not encrypted: use STARTTLS or ImplicitTLS", c.set.addr))
	}
	_, offered := c.client.Extension("AUTH")
	mechanism, err := choose(c.set.auth, strings.Fields(strings.ToUpper(offered)))
	if err != nil {
		return oncemill.ProviderAway(err)
	}
	err = c.client.Auth(c.mechanism(mechanism))
	if err == nil {
		return nil
	}
	if reply := asReply(stepAUTH, err); reply != nil {
		reply.Text = c.withoutSecrets(reply.Text)
		return oncemill.ProviderAway(fmt.Errorf("%w (%s as %s: see Sender.Username, Password and Auth)", reply, mechanism, oneline.Of(c.set.username, 80)))
	}
	if text := err.Error(); c.withoutSecrets(text) != text {
		err = errors.New("the server repeats the password")
	}
	return oncemill.ProviderAway(explain(ctx, stepAUTH, err))
}

func choose(wanted Mechanism, offered []string) (Mechanism, error) {
	for _, m := range mechanisms {
		if (wanted == "" || wanted == m) && slices.Contains(offered, string(m)) {
			return m, nil
		}
	}
	return "", fmt.Errorf("email: AUTH: the server offers %s, and we have %s: see Sender.Auth, or leave Sender.Username empty",
		oneline.Of(fmt.Sprint(offered), 200), orAll(wanted))
}

func orAll(wanted Mechanism) string {
	if wanted == "" {
		return fmt.Sprint(mechanisms)
	}
	return string(wanted)
}

func (c *conn) mechanism(m Mechanism) smtp.Auth {
	user, password := c.set.username, c.set.password
	switch m { // that nothing goes in the clear is seen to above
	case ScramSHA256:
		return smtp.ScramSHA256Auth(user, password)
	case ScramSHA1:
		return smtp.ScramSHA1Auth(user, password)
	case Login:
		return smtp.LoginAuth(user, password, c.set.host, true)
	case CramMD5:
		return smtp.CRAMMD5Auth(user, password)
	}
	return smtp.PlainAuth("", user, password, c.set.host, true)
}

func (c *conn) isLocal() bool {
	a, ok := c.wire.RemoteAddr().(*net.TCPAddr)
	return ok && a.IP.IsLoopback()
}

// withoutSecrets returns the words of a server, unless it has repeated what we sent.
func (c *conn) withoutSecrets(text string) string {
	user, password := c.set.username, c.set.password
	encode := base64.StdEncoding.EncodeToString
	for _, secret := range []string{password, encode([]byte(password)), encode([]byte("\x00" + user + "\x00" + password))} {
		if strings.Contains(text, secret) {
			return "(not shown, since it has the password in it)"
		}
	}
	return text
}
