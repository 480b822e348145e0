package email

import (
	"context"
	"net"
	"time"

	"github.com/oncemill/oncemill/internal/oneline"
)

// Compose returns what would be sent for a mail.
func (s *Sender) Compose(m Mail, providerKey string, first time.Time) (data string, recipients []string, err error) {
	if err := s.setUp(); err != nil {
		return "", nil, err
	}
	l, err := s.set.compose(m, effect{providerKey, 1, first})
	if err != nil {
		return "", nil, err
	}
	return string(l.data), l.recipients, nil
}

// Clean is clean.
func Clean(text string, most int) string { return oneline.Of(text, most) }

// Transmit sends a mail over a connection on which the greeting is due.
func Transmit(ctx context.Context, raw net.Conn, data string) (reply string, err error) {
	c := &conn{set: &settings{host: "127.0.0.1", mode: NoTLS, localName: "localhost"}, wire: &wire{Conn: raw}}
	c.hold(ctx)
	defer c.drop()
	if err := c.introduce(ctx); err != nil {
		return "", err
	}
	c.usable = true
	l := &letter{messageID: "<1@example.com>", from: "<shop@example.com>", recipients: []string{"<ann@example.com>"}, data: []byte(data)}
	if err := c.begin(ctx, l); err != nil {
		return "", err
	}
	return c.finish(ctx, l)
}
