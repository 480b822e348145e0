package email

import (
	"context"
	"errors"
	"fmt"
	"net/textproto"
	"os"
	"regexp"
	"strings"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/oneline"
)

// A step of the dialogue, in its order.
type step string

const (
	stepConnect  step = "connect"
	stepGreeting step = "greeting"
	stepEHLO     step = "EHLO"
	stepSTARTTLS step = "STARTTLS"
	stepTLS      step = "TLS handshake"
	stepAUTH     step = "AUTH"
	stepNoop     step = "NOOP"
	stepMAIL     step = "MAIL"
	stepRCPT     step = "RCPT"
	stepDATA     step = "DATA"
	stepBody     step = "body"
	stepEnd      step = "end of data"
)

// A ReplyError is a server's refusal.
type ReplyError struct {
	Step      string // such as "AUTH", "MAIL", "RCPT", "DATA", "end of data"
	Code      int    // from 400 to 599
	Text      string // what the server said, shortened and without control characters
	Recipient string // for RCPT: whom it refused
}

func (e *ReplyError) Error() string {
	if e.Recipient != "" {
		return fmt.Sprintf("email: %s for %s was refused: %d %s", e.Step, e.Recipient, e.Code, e.Text)
	}
	return fmt.Sprintf("email: %s was refused: %d %s", e.Step, e.Code, e.Text)
}

// notOurs reports whether a permanent refusal is about the client, its configuration
// or the dialogue, and not about the mail. Another mail would have fared no better.
func (e *ReplyError) notOurs() bool {
	switch e.Code {
	case 500, 502, 503, 504: // the command is not known, or not now
		return true
	case 521, 523, 530, 534, 535, 538: // the server takes no mail; authenticate, or encrypt, first
		return true
	}
	if strings.HasPrefix(e.Text, "5.7.8 ") || strings.HasPrefix(e.Text, "5.7.9 ") {
		return true
	}
	return e.Step == string(stepRCPT) && e.isAboutRelaying()
}

var relaying = regexp.MustCompile(`(?i)unable to relay|\brelay(ing)?\b.*\b(denied|prohibited|refused|rejected|not (allowed|permitted))\b|\bnot (allowed|permitted) to relay\b`)

// isAboutRelaying reports whether a recipient was refused because we have no rights at
// this server, such as without AUTH. That has no code of its own: Postfix says 554,
// Exim and Exchange 550. The words are looked for outside of the address, which anybody
// may choose, and not in 5.1.x, which is about the address.
func (e *ReplyError) isAboutRelaying() bool {
	text := strings.ToLower(e.Text)
	local, domain, _ := strings.Cut(strings.ToLower(e.Recipient), "@")
	text = strings.ReplaceAll(strings.ReplaceAll(text, local+"@"+domain, ""), domain, "")
	return !strings.HasPrefix(text, "5.1.") && relaying.MatchString(text)
}

// isAway reports whether a refusal has nothing to do with the mail. Once the server has
// seen the mail, anything may have to do with it.
func (e *ReplyError) isAway() bool {
	if e.Step == string(stepBody) || e.Step == string(stepEnd) {
		return false
	}
	return e.notOurs() || e.Code == 421 || strings.HasPrefix(e.Text, "4.3.") // the server has a trouble of its own
}

// verdict marks a refusal. Until the server has accepted the end of the data it has
// not taken the mail.
func (e *ReplyError) verdict() error {
	switch {
	case e.isAway():
		return oncemill.ProviderAway(e)
	case e.Code/100 == 5 && !e.notOurs():
		return oncemill.NeverWill(e)
	}
	return oncemill.DidNotHappen(e)
}

// asReply returns what the server has said, if it refused, and else nil.
func asReply(at step, err error) *ReplyError {
	var reply *textproto.Error
	if !errors.As(err, &reply) || reply.Code < 400 || reply.Code > 599 {
		return nil
	}
	return &ReplyError{Step: string(at), Code: reply.Code, Text: oneline.Of(reply.Msg, 200)}
}

// explain says what has become of a connection.
func explain(ctx context.Context, at step, err error) error {
	switch {
	case errors.Is(err, errTooMuch):
	case ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("email: %s: given up: %w", at, context.Cause(ctx))
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("email: %s: no answer within the time (Sender.Timeout, or the claim's lease): %w", at, context.DeadlineExceeded)
	}
	var odd *textproto.Error
	if errors.As(err, &odd) {
		return fmt.Errorf("email: %s: the server answers %d %s", at, odd.Code, oneline.Of(odd.Msg, 200))
	}
	var malformed textproto.ProtocolError
	if errors.As(err, &malformed) {
		return fmt.Errorf("email: %s: the server does not speak SMTP: %s", at, oneline.Of(string(malformed), 200))
	}
	return fmt.Errorf("email: %s: the connection is broken: %w", at, err)
}
