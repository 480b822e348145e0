package email_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/email"
	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/smtpserver"
)

func isAway(err error) bool { return errors.Is(err, oncemill.ErrProviderAway) }

func isRecipient(names ...string) func(smtpserver.Event) bool {
	return func(e smtpserver.Event) bool {
		return slices.ContainsFunc(names, func(name string) bool { return strings.Contains(e.Argument, name) })
	}
}

// If one recipient is refused, nobody gets the mail.
func TestAMailIsForAllOfItsRecipientsOrForNone(t *testing.T) {
	t.Parallel()
	refuse := func(code int, text string, names ...string) smtpserver.Fault {
		return smtpserver.Fault{At: smtpserver.Recipient, Code: code, Text: text, When: isRecipient(names...)}
	}
	for name, c := range map[string]struct {
		faults  []smtpserver.Fault
		verdict oncemill.Verdict
		away    bool
		says    string
	}{
		"one for good":      {[]smtpserver.Fault{refuse(550, "5.1.1 unknown", "bob")}, never, false, "1 of 3 recipients were refused, so nobody got the mail: bob@example.com: 550 5.1.1 unknown"},
		"one for now":       {[]smtpserver.Fault{refuse(450, "4.2.1 later", "cy")}, notHappened, false, "cy@example.com: 450"},
		"one of either":     {[]smtpserver.Fault{refuse(450, "4.2.1 later", "ann"), refuse(550, "5.1.1 unknown", "cy")}, never, false, "ann@example.com: 450 4.2.1 later; cy@example.com: 550"},
		"no relay for one":  {[]smtpserver.Fault{refuse(550, "5.1.1 unknown", "ann"), refuse(554, "5.7.1 relaying denied", "cy")}, notHappened, true, "2 of 3"},
		"the server closes": {[]smtpserver.Fault{refuse(550, "5.1.1 unknown", "ann"), refuse(421, "4.3.2 closing", "cy")}, notHappened, true, "RCPT was refused: 421 4.3.2"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPost(t, smtpserver.Options{Faults: c.faults})
			m := order()
			m.Cc, m.Bcc = []string{"bob@example.com"}, []string{"cy@example.com"}
			_, err := p.send(m)
			want(t, err, c.verdict, c.says)
			if isAway(err) != c.away {
				t.Errorf("%v is away: %v", err, isAway(err))
			}
			p.wantLedger(0)
			p.server.Script()
			_, err = p.send(m)
			must(t, err)
			if mails := p.server.Ledger(); len(mails) != 1 || len(mails[0].Recipients) != 3 || strings.Contains(mails[0].Data, "cy@") {
				t.Errorf("the ledger has %+v", mails)
			}
		})
	}
}

func TestManyRefusalsMakeAShortError(t *testing.T) {
	t.Parallel()
	p := newPost(t, smtpserver.Options{Faults: []smtpserver.Fault{{At: smtpserver.Recipient, Code: 550, Text: strings.Repeat("no ", 200)}}})
	m := order()
	for i := range 99 {
		m.To = append(m.To, fmt.Sprintf("r%d@example.com", i))
	}
	_, err := p.send(m)
	want(t, err, never, "100 of 100", "and others")
	var all *email.RecipientsError
	if !errors.As(err, &all) || len(all.Refused) != 100 || len(err.Error()) > 4000 {
		t.Errorf("the error has %d bytes and is about %+v", len(err.Error()), all)
	}
}

// Nobody is even asked about a mail that would smuggle something.
func TestHeaderInjectionSendsNothing(t *testing.T) {
	t.Parallel()
	p := newPost(t, smtpserver.Options{})
	const evil = "x\r\nBcc: eve@example.com\r\n\r\nBuy"
	for name, change := range map[string]func(*email.Mail){
		"from":      func(m *email.Mail) { m.From = evil },
		"to":        func(m *email.Mail) { m.To = []string{"ann@example.com>\r\nRCPT TO:<eve@example.com"} },
		"reply_to":  func(m *email.Mail) { m.ReplyTo = "a@example.com" + evil },
		"subject":   func(m *email.Mail) { m.Subject = evil },
		"headers.X": func(m *email.Mail) { m.Headers = map[string]string{"X": evil} },
	} {
		m := order()
		change(&m)
		_, err := p.send(m)
		want(t, err, never, "email: "+name, "control characters")
	}
	p.wantConnections(0)
	p.wantLedger(0)
}

// What looks like the end of the data, or like a command, is text.
func TestABodyArrivesAsItWasWritten(t *testing.T) {
	t.Parallel()
	p := newPost(t, smtpserver.Options{})
	text := ".\r\n\r\n.\r\nMAIL FROM:<eve@example.com>\r\n..\n.\rünïcödé 🎉\n" + strings.Repeat("long ", 500)
	m := order()
	m.Text, m.Subject = text, "Größe 🎉"
	_, err := p.send(m)
	must(t, err)
	p.wantLedger(1)
	parsed, err := p.server.Ledger()[0].Parse()
	must(t, err)
	body, err := io.ReadAll(quotedprintable.NewReader(parsed.Body))
	must(t, err)
	wanted := strings.ReplaceAll(strings.ReplaceAll(strings.ReplaceAll(text, "\r\n", "\n"), "\r", "\n"), "\n", "\r\n")
	if got := strings.TrimSuffix(string(body), "\r\n"); got != wanted {
		t.Errorf("the body is %q", got)
	}
	if subject, _ := new(mime.WordDecoder).DecodeHeader(parsed.Header.Get("Subject")); subject != "Größe 🎉" {
		t.Errorf("the subject is %q", subject)
	}
}

func TestALargeMailArrivesWhole(t *testing.T) {
	t.Parallel()
	p := newPost(t, smtpserver.Options{})
	content := bytes.Repeat([]byte("\x00\r\n.\r\n\xff"), 700_000)
	m := order()
	m.Attachments = []email.Attachment{{Name: "a.bin", Content: content}}
	_, err := p.send(m)
	must(t, err)
	parsed, err := p.server.Ledger()[0].Parse()
	must(t, err)
	_, parameters, err := mime.ParseMediaType(parsed.Header.Get("Content-Type"))
	must(t, err)
	reader := multipart.NewReader(parsed.Body, parameters["boundary"])
	_, err = reader.NextPart()
	must(t, err)
	part, err := reader.NextPart()
	must(t, err)
	got, err := io.ReadAll(part)
	must(t, err)
	decoded, err := json.Marshal(content) // base64 in quotes
	must(t, err)
	if strings.ReplaceAll(string(got), "\r\n", "") != strings.Trim(string(decoded), `"`) {
		t.Errorf("%d bytes arrived", len(got))
	}
}

func TestAMailThatIsTooLargeForTheServer(t *testing.T) {
	t.Parallel()
	p := newPost(t, smtpserver.Options{MaxBytes: 1000})
	m := order()
	m.Text = strings.Repeat("x", 2000)
	_, err := p.send(m)
	want(t, err, never, "the server takes at most 1000")
	_, err = p.send(order())
	must(t, err)
	p.wantConnections(1)
	p.wantLedger(1)
}

func TestInternationalAddresses(t *testing.T) {
	t.Parallel()
	m := order()
	m.To = []string{"Ann <änn@größe.example>"}
	t.Run("to a server that takes them", func(t *testing.T) {
		t.Parallel()
		p := newPost(t, smtpserver.Options{})
		_, err := p.send(m)
		must(t, err)
		_, err = p.send(order())
		must(t, err)
		mails := p.server.Ledger()
		if !mails[0].UTF8 || mails[0].Recipients[0] != "änn@größe.example" || !strings.Contains(mails[0].Data, "änn@größe.example") {
			t.Errorf("the mail is %+v", mails[0])
		}
		if mails[1].UTF8 {
			t.Error("SMTPUTF8 without need")
		}
	})
	t.Run("to one that does not", func(t *testing.T) {
		t.Parallel()
		p := newPost(t, smtpserver.Options{NoSMTPUTF8: true})
		_, err := p.send(m)
		want(t, err, never, "no SMTPUTF8", "xn--")
		_, err = p.send(order())
		must(t, err)
		p.wantConnections(1)
		p.wantLedger(1)
	})
}

func TestTheReturnPath(t *testing.T) {
	t.Parallel()
	p := newPost(t, smtpserver.Options{})
	p.sender.ReturnPath = "bounces@example.com"
	_, err := p.send(order())
	must(t, err)
	m := p.server.Ledger()[0]
	if m.From != "bounces@example.com" || !strings.Contains(m.Data, `From: "Shop" <shop@example.com>`) || strings.Contains(m.Data, "bounces@") {
		t.Errorf("the mail is %+v", m)
	}
}

// The receipt is the claim's result, and rows are there if the mail is.
func TestAReceiptSettlesTheClaim(t *testing.T) {
	t.Parallel()
	database := testcontainers.Postgres(t)
	_, err := database.DB.Exec(`CREATE TABLE sent (key text, id text)`)
	must(t, err)
	p := openPost(t, smtpserver.Options{}, (&oncemill.Inbox{DB: database.DB}).Consumer("mails"))
	p.sender.OnSettle = func(ctx context.Context, tx oncemill.Tx, key string, r email.Receipt) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO sent VALUES ($1, $2)`, key, r.MessageID)
		return err
	}
	claim := p.claim(oncemill.ClaimOptions{})
	receipt, err := p.sendUnder(within(t), claim, order())
	must(t, err)
	must(t, claim.Settle(within(t), nil, nil))
	var result, row string
	must(t, database.DB.QueryRow(`SELECT convert_from(result, 'UTF8'), (SELECT key || id FROM sent) FROM oncemill.claims`).Scan(&result, &row))
	id := p.server.Ledger()[0].MessageID
	if wanted := fmt.Sprintf(`{"message_id":%q,"reply":"250 2.0.0 OK: queued as %s","recipients":1}`, id, id); strings.NewReplacer(`\u003c`, "<", `\u003e`, ">").Replace(result) != wanted {
		t.Errorf("the result is %s, not %s", result, wanted)
	}
	if row != claim.Key()+id || receipt.MessageID != id || id != "<"+claim.ProviderKey()+"@example.com>" {
		t.Errorf("the row is %s, the receipt %+v", row, receipt)
	}
}

func TestADecodeOfOnesOwn(t *testing.T) {
	t.Parallel()
	p := newPost(t, smtpserver.Options{})
	var fails error
	p.sender.Decode = func(msg *message.Message) (email.Mail, error) {
		if fails == nil {
			panic("no such template")
		}
		return email.Mail{}, fails
	}
	_, err := p.send(order())
	want(t, err, notHappened, "Sender.Decode panicked: no such template")
	fails = errors.New("the database of templates is away")
	_, err = p.send(order())
	want(t, err, notHappened, "templates is away")
	fails = &email.InputError{Field: "template", Reason: "is not known"}
	_, err = p.send(order())
	want(t, err, never, "email: template is not known")
	p.wantConnections(0)
}

// lose sends a mail whose reply is lost, and takes the claim over for another attempt.
func (p *post) lose() *oncemill.Claim {
	p.t.Helper()
	p.server.Script(smtpserver.Fault{At: smtpserver.Accepted, Drop: true})
	opts := oncemill.ClaimOptions{KeyLifetime: time.Hour}
	claim := p.claim(opts)
	_, err := p.sendUnder(within(p.t), claim, order())
	want(p.t, err, unknown, "the connection is broken", "the server may have taken the mail <"+claim.ProviderKey())
	must(p.t, claim.Doubt(within(p.t), err.Error(), nil))
	again, err := p.claims.Claim(within(p.t), claim.Key(), opts)
	must(p.t, err)
	p.server.Script()
	return again
}

func TestHoldSendsNothingAfterALostReply(t *testing.T) {
	t.Parallel()
	p := newPost(t, smtpserver.Options{})
	_, err := p.sendUnder(within(t), p.lose(), order())
	want(t, err, unknown, "attempt 2: nothing was sent", "Sender.LostReply")
	p.wantLedger(1)
}

func TestResendHasTheSameMessageID(t *testing.T) {
	t.Parallel()
	p := newPost(t, smtpserver.Options{})
	p.sender.LostReply = email.Resend
	_, err := p.sendUnder(within(t), p.lose(), order())
	must(t, err)
	mails := p.server.Ledger()
	if len(mails) != 2 || mails[0].MessageID != mails[1].MessageID {
		t.Fatalf("the ledger has %+v", mails)
	}
	var dates []string
	for _, m := range mails {
		parsed, err := m.Parse()
		must(t, err)
		dates = append(dates, parsed.Header.Get("Date"))
	}
	if dates[0] != dates[1] {
		t.Errorf("the dates are %v", dates)
	}
}

// That the second attempt was refused does not say that the first one was.
func TestAnAttemptTellsNothingOfTheOneBefore(t *testing.T) {
	t.Parallel()
	for _, code := range []int{450, 550} {
		p := newPost(t, smtpserver.Options{})
		p.sender.LostReply = email.Resend
		again := p.lose()
		p.server.Script(smtpserver.Fault{At: smtpserver.Recipient, Code: code})
		_, err := p.sendUnder(within(t), again, order())
		want(t, err, unknown, "attempt 2, which tells nothing of the ones before", fmt.Sprint(code))
	}
}

// Anybody may choose an address that reads like a refusal.
func TestAnAddressIsNotTakenForAReason(t *testing.T) {
	t.Parallel()
	p := newPost(t, smtpserver.Options{Faults: []smtpserver.Fault{
		{At: smtpserver.Recipient, Code: 554, Text: "5.7.1 <relay@relay.example>: access denied, relay.example is blocked"}}})
	m := order()
	m.To = []string{"relay@relay.example"}
	_, err := p.send(m)
	want(t, err, never)
}
