package email

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/wneessen/go-mail/smtp"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/oneline"
)

// write sends the body, all of it and no more. A mail whose end was not sent is not
// taken by any server (RFC 5321, 4.1.1.4), so an error here is certain. What makes it
// so is that the end is written by nobody but end: the body is flushed before, and
// after an error the connection is closed without another command.
func (c *conn) write(ctx context.Context, w io.Writer, l *letter) error {
	_, err := w.Write(l.data)
	if err == nil {
		err = c.client.Text.W.Flush()
	}
	if err != nil {
		return oncemill.DidNotHappen(explain(ctx, stepBody, err))
	}
	if c.client.Text.R.Buffered() > 0 {
		return c.early(ctx)
	}
	// Whoever ends the data has to hear the reply, or nobody will know.
	deadline, _ := ctx.Deadline()
	if err := ctx.Err(); err != nil || time.Until(deadline) < c.least {
		return oncemill.DidNotHappen(errors.Join(errors.New("email: body: too little time is left to wait for a reply, so the end of the data was not sent (Sender.Timeout, or the claim's lease)"), err))
	}
	return nil
}

// early is for a server that answers before the end of the data.
func (c *conn) early(ctx context.Context) error {
	_, _, err := c.client.Text.ReadResponse(2)
	if err == nil {
		return oncemill.DidNotHappen(errors.New("email: body: the server accepts the mail before its end"))
	}
	return c.failed(ctx, stepBody, err)
}

// end sends the end of the data and reads the reply. From the first byte that leaves,
// only a reply tells what the server has done.
func (c *conn) end(ctx context.Context, w io.Writer, l *letter) (reply string, err error) {
	data, ok := w.(*smtp.DataCloser)
	if !ok {
		return "", oncemill.DidNotHappen(fmt.Errorf("email: body: unexpected writer %T", w))
	}
	before := c.wire.written.Load()
	// Not data.Close, which does not say whether the end was written.
	if err := data.WriteCloser.Close(); err != nil {
		if c.wire.written.Load() == before {
			return "", oncemill.DidNotHappen(explain(ctx, stepBody, err))
		}
		return "", unknown(ctx, l, err)
	}
	code, text, err := c.client.Text.ReadResponse(2)
	if err == nil {
		c.usable = true
		return oneline.Of(fmt.Sprintf("%d %s", code, text), 200), nil
	}
	refused := asReply(stepEnd, err)
	if refused == nil {
		return "", unknown(ctx, l, err)
	}
	c.usable = refused.Code != 421
	return "", refused.verdict()
}

func unknown(ctx context.Context, l *letter, err error) error {
	return fmt.Errorf("%w: the server may have taken the mail %s, look for it there or in its log", explain(ctx, stepEnd, err), l.messageID)
}
