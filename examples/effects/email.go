package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/email"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/testcontainers/smtpserver"
)

var emailKind = &kind{
	consumer: "mails",
	introduction: `%s orders each get an e-mail. The worker is a Watermill handler, email.Sender, under
middleware.Guard, on NATS JetStream and Postgres. The mail server has STARTTLS and
AUTH, loses replies, and is asked nothing: SMTP cannot be. So a mail of which nobody
knows whether it was sent is not sent again. It is listed, for a person.

`,
	provider: "an SMTP server",
	unit:     "mail", verb: "sent",
	moments: []moment{beforeClaim, afterClaim, afterRequest, afterEffect, beforeSettle, whileSettling, beforeAck},
	faults:  []fault{lostReply, lostBoth, cutBefore, temporary, refused, slow},

	newOrder: newMail,
	serve:    serveMail,
	equip:    equipSender,
	ledger:   mailLedger,
	resolve: `The table has what claims --in-doubt lists. To resolve one, look for its Message-ID, which
is <PROVIDER KEY@shop.example>, in the mail server's log; then say what you found:

  oncemill claims resolve mails %[1]s --token %[2]d --happened --note 'queued as 4XK, in the log'
  oncemill claims resolve mails %[1]s --token %[2]d --not-happened --note 'not in the log'

The second has the parked message delivered again.
`,
}

const (
	mailUser, mailPassword = "shop", "correct horse battery staple"

	// mailTimeout is how long a mail may take. The lease has to be longer.
	mailTimeout = time.Second
	mailLease   = 3 * time.Second
)

// newMail makes the n-th order: a mail to a customer, who is known by its address.
func newMail(n int) *message.Message {
	payload, err := json.Marshal(email.Mail{
		To:      []string{fmt.Sprintf("%s@example.com", key(n))},
		Subject: fmt.Sprintf("Your order %d", n),
		Text:    "Thank you. It is on its way.",
	})
	if err != nil {
		panic(err) // it is only text
	}
	msg := message.NewMessage(watermill.NewUUID(), payload)
	msg.Metadata.Set(orderID, key(n))
	return msg
}

// equipSender makes the handler. Beside the mail it writes a row, when the claim is
// settled, and returns a receipt, which goes through the outbox.
func equipSender(s setting, d *doom) (with equipment, err error) {
	trust, err := smtpserver.ClientTLS(s.Dir)
	if err != nil {
		return with, err
	}
	sender := &email.Sender{
		Addr: s.Provider, TLSConfig: trust, Username: mailUser, Password: mailPassword,
		From: "Shop <orders@shop.example>", Timeout: mailTimeout,
		LocalName: helloName(s),
		OnSettle: func(ctx context.Context, tx oncemill.Tx, key string, r email.Receipt) error {
			_, err := tx.ExecContext(ctx, insertRecord, key, r.MessageID, 0)
			d.reached(whileSettling)
			return err
		},
	}
	handle := func(msg *message.Message) ([]*message.Message, error) {
		receipt, err := sender.Send(msg)
		if err != nil {
			return nil, err
		}
		return []*message.Message{newReceipt(msg.Metadata.Get(orderID), receipt)}, nil
	}
	return equipment{
		guard:  middleware.Guard{Lease: mailLease, Timeout: mailTimeout, Probe: sender.Check},
		handle: handle,
		close:  func() { _ = sender.Close() },
	}, nil
}

// newReceipt tells others that an order has had its effect.
func newReceipt(order string, receipt any) *message.Message {
	payload, err := json.Marshal(receipt)
	if err != nil {
		panic(err) // receipts are text and numbers
	}
	msg := message.NewMessage("receipt-"+order, payload)
	msg.Metadata.Set(orderID, order)
	return msg
}

// mailLedger reads what the server has accepted.
func mailLedger(dir string) (all []effect, err error) {
	mails, err := smtpserver.ReadLedger(dir)
	for _, m := range mails {
		order, _, _ := strings.Cut(strings.Join(m.Recipients, ","), "@")
		key, _, _ := strings.Cut(strings.Trim(m.MessageID, "<>"), "@")
		all = append(all, effect{Order: order, Key: key, ID: m.MessageID})
	}
	return all, err
}
