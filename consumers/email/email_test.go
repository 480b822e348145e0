package email_test

import (
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"go.uber.org/goleak"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/email"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const key = "om-0123456789012345678901234567890123456789"

var first = time.Date(2026, 11, 25, 4, 43, 51, 0, time.UTC)

func sender() *email.Sender {
	return &email.Sender{Addr: "127.0.0.1:1", From: "Shop <shop@example.com>"}
}

func compose(t *testing.T, m email.Mail) *mail.Message {
	t.Helper()
	data, _, err := sender().Compose(m, key, first)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, data)
}

func parse(t *testing.T, data string) *mail.Message {
	t.Helper()
	parsed, err := mail.ReadMessage(strings.NewReader(data))
	if err != nil {
		t.Fatalf("%v in\n%s", err, data)
	}
	return parsed
}

func TestAMailHasTheHeadersThatItWasGiven(t *testing.T) {
	t.Parallel()
	m := compose(t, email.Mail{
		To: []string{"Ann Ä <ann@example.com>", "bob@example.com"}, Cc: []string{"cleo@example.com"}, Bcc: []string{"dan@example.com"},
		ReplyTo: "help@example.com", Subject: "Größe  42:\tbestellt", Text: "Liebe Ann,\nes kommt.", HTML: "<p>Liebe Ann</p>",
		Headers: map[string]string{"List-Unsubscribe": "<https://example.com/u>", "X-Shop": "ja ß"},
	})
	decode := new(mime.WordDecoder)
	for name, want := range map[string]string{
		"From": `"Shop" <shop@example.com>`, "Cc": "<cleo@example.com>", "Reply-To": "<help@example.com>", "Bcc": "",
		"Subject": "Größe 42: bestellt", "Message-Id": "<" + key + "@example.com>", "Date": "Wed, 25 Nov 2026 04:43:51 +0000",
		"List-Unsubscribe": "<https://example.com/u>", "X-Shop": "ja ß", "Mime-Version": "1.0", "User-Agent": "",
	} {
		got, err := decode.DecodeHeader(m.Header.Get(name))
		if err != nil || got != want {
			t.Errorf("%s is %q, not %q", name, got, want)
		}
	}
	to, err := m.Header.AddressList("To")
	if err != nil || len(to) != 2 || to[0].Name != "Ann Ä" || to[1].Address != "bob@example.com" {
		t.Errorf("To is %v, %v", to, err)
	}
}

func parts(t *testing.T, kind string, body io.Reader) (all []string) {
	t.Helper()
	media, parameters, err := mime.ParseMediaType(kind)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(media, "multipart/") {
		text, err := io.ReadAll(body)
		if err != nil {
			t.Fatal(err)
		}
		return []string{media + ": " + string(text)}
	}
	reader := multipart.NewReader(body, parameters["boundary"])
	for {
		part, err := reader.NextPart() // undoes quoted-printable
		if err == io.EOF {
			return append([]string{media}, all...)
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, parts(t, part.Header.Get("Content-Type"), part)...)
	}
}

func TestTextAndHTMLAreAlternatives(t *testing.T) {
	t.Parallel()
	m := compose(t, email.Mail{To: []string{"ann@example.com"}, Text: "ä\n.\nend", HTML: "<p>ä</p>",
		Attachments: []email.Attachment{{Name: "größe.pdf", ContentType: "application/pdf", Content: []byte("%PDF")}, {Name: "b", Content: []byte{0}}}})
	want := []string{"multipart/mixed", "multipart/alternative", "text/plain: ä\r\n.\r\nend", "text/html: <p>ä</p>",
		"application/pdf: JVBERg==", "application/octet-stream: AA=="}
	got := parts(t, m.Header.Get("Content-Type"), m.Body)
	for i := range got {
		got[i] = strings.TrimSpace(got[i])
	}
	if !slices.Equal(got, want) {
		t.Errorf("the parts are %q", got)
	}
}

func TestARecipientIsNamedOnce(t *testing.T) {
	t.Parallel()
	_, recipients, err := sender().Compose(email.Mail{
		To: []string{"ann@example.com", "Bob <bob@example.com>"}, Cc: []string{"Ann <ann@EXAMPLE.com>"}, Bcc: []string{"bob@example.com", "Cy@example.com"},
		Subject: "x"}, key, first)
	if err != nil || !slices.Equal(recipients, []string{"<ann@example.com>", "<bob@example.com>", "<Cy@example.com>"}) {
		t.Errorf("the recipients are %v, %v", recipients, err)
	}
}

func TestTheDomainOfAMessageID(t *testing.T) {
	t.Parallel()
	for want, s := range map[string]*email.Sender{
		"@shop.test>":    {Addr: "127.0.0.1:1", From: "a@shop.test"},
		"@bounces.test>": {Addr: "127.0.0.1:1", From: "a@shop.test", ReturnPath: "b@bounces.test"},
		"@ids.test>":     {Addr: "127.0.0.1:1", From: "a@shop.test", MessageIDDomain: "ids.test"},
		"@mail.invalid>": {Addr: "127.0.0.1:1", From: "a@größe.test"},
	} {
		data, _, err := s.Compose(email.Mail{To: []string{"ann@example.com"}, Subject: "x"}, key, first)
		if err != nil {
			t.Fatal(err)
		}
		if got := parse(t, data).Header.Get("Message-ID"); got != "<"+key+want {
			t.Errorf("the Message-ID is %s, and should end in %s", got, want)
		}
	}
}

// ok is a mail with which nothing is wrong.
func ok(change func(*email.Mail)) email.Mail {
	m := email.Mail{To: []string{"ann@example.com"}, Subject: "Your order", Text: "It is on its way."}
	change(&m)
	return m
}

func TestAWrongMailIsRefusedByTheNameOfItsField(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 950)
	for _, c := range []struct {
		field, says string
		m           email.Mail
	}{
		{"to", "one recipient", ok(func(m *email.Mail) { m.To = nil })},
		{"to", "at most 100", ok(func(m *email.Mail) {
			for i := range 60 {
				m.To = append(m.To, string(rune('a'+i%26))+strings.Repeat("x", i)+"@example.com")
				m.Cc = append(m.Cc, "c"+string(rune('a'+i%26))+strings.Repeat("x", i)+"@example.com")
			}
		})},
		{"cc", "at most 100", ok(func(m *email.Mail) { m.Cc = make([]string, 101) })},
		{"to[0]", "one address", ok(func(m *email.Mail) { m.To = []string{"ann"} })},
		{"to[0]", "one address", ok(func(m *email.Mail) { m.To = []string{"ann@example.com, bob@example.com"} })},
		{"cc[1]", "control characters", ok(func(m *email.Mail) { m.Cc = []string{"a@example.com", "a@example.com\r\nBcc: eve@example.com"} })},
		{"bcc[0]", "control characters", ok(func(m *email.Mail) { m.Bcc = []string{"a@example.com>\nRCPT TO:<eve@example.com"} })},
		{"to[0]", "control characters", ok(func(m *email.Mail) { m.To = []string{"=?utf-8?q?a=0d=0aBcc=3A_eve?= <a@example.com>"} })},
		{"to[0]", "quotes", ok(func(m *email.Mail) { m.To = []string{`"a> SIZE=1"@example.com`} })},
		{"to[0]", "quotes", ok(func(m *email.Mail) { m.To = []string{`"a@evil.test"@example.com`} })},
		{"to[0]", "64 bytes", ok(func(m *email.Mail) { m.To = []string{strings.Repeat("a", 65) + "@example.com"} })},
		{"from", "control characters", ok(func(m *email.Mail) { m.From = "a@example.com\nX: y" })},
		{"from", "one address", ok(func(m *email.Mail) { m.From = "nobody" })},
		{"reply_to", "control characters", ok(func(m *email.Mail) { m.ReplyTo = "a@example.com\r" })},
		{"subject", "text and html are too", email.Mail{To: []string{"ann@example.com"}}},
		{"subject", "line breaks", ok(func(m *email.Mail) { m.Subject = "x\r\nBcc: eve@example.com" })},
		{"subject", "line breaks", ok(func(m *email.Mail) { m.Subject = "x\x00" })},
		{"subject", "UTF-8", ok(func(m *email.Mail) { m.Subject = "\xff" })},
		{"subject", "at most 2000", ok(func(m *email.Mail) { m.Subject = strings.Repeat("x ", 1001) })},
		{"subject", "without a space", ok(func(m *email.Mail) { m.Subject = "a " + long })},
		{"text", "UTF-8", ok(func(m *email.Mail) { m.Text = "\xff" })},
		{"html", "UTF-8", ok(func(m *email.Mail) { m.HTML = "\xff" })},
		{"headers.X", "line breaks", ok(func(m *email.Mail) { m.Headers = map[string]string{"X": "a\nb: c"} })},
		{"headers", "printable", ok(func(m *email.Mail) { m.Headers = map[string]string{"X\nY": "a"} })},
		{"headers", "printable", ok(func(m *email.Mail) { m.Headers = map[string]string{"X: a\r\nY": "a"} })},
		{"headers", "printable", ok(func(m *email.Mail) { m.Headers = map[string]string{"": "a"} })},
		{"headers", "twice", ok(func(m *email.Mail) { m.Headers = map[string]string{"X-a": "a", "x-A": "b"} })},
		{"headers.BCC", "not to be set", ok(func(m *email.Mail) { m.Headers = map[string]string{"BCC": "eve@example.com"} })},
		{"headers.message-id", "not to be set", ok(func(m *email.Mail) { m.Headers = map[string]string{"message-id": "x"} })},
		{"headers.Content-Type", "not to be set", ok(func(m *email.Mail) { m.Headers = map[string]string{"Content-Type": "x"} })},
		{"attachments[0].name", "empty", ok(func(m *email.Mail) { m.Attachments = []email.Attachment{{}} })},
		{"attachments[0].name", "line breaks", ok(func(m *email.Mail) { m.Attachments = []email.Attachment{{Name: "a\r\nX: y"}} })},
		{"attachments[1].content_type", "application/pdf", ok(func(m *email.Mail) {
			m.Attachments = []email.Attachment{{Name: "a"}, {Name: "a", ContentType: "text/plain\r\nX: y"}}
		})},
		{"attachments[0].content_type", "application/pdf", ok(func(m *email.Mail) {
			m.Attachments = []email.Attachment{{Name: "a", ContentType: "multipart/mixed; boundary=x"}}
		})},
		{"payload", "MaxBytes", ok(func(m *email.Mail) { m.Text = strings.Repeat("x", email.DefaultMaxBytes) })},
		{"payload", "MaxBytes", ok(func(m *email.Mail) {
			m.Attachments = []email.Attachment{{Name: "a", Content: make([]byte, email.DefaultMaxBytes*9/10)}}
		})},
	} {
		_, _, err := sender().Compose(c.m, key, first)
		var wrong *email.InputError
		if !errors.As(err, &wrong) || wrong.Field != c.field || !strings.Contains(err.Error(), c.says) {
			t.Errorf("the error is %v; it should be about %s and say %q", err, c.field, c.says)
			continue
		}
		if oncemill.VerdictOf(err) != oncemill.Never {
			t.Errorf("%v: the verdict is %q", err, oncemill.VerdictOf(err))
		}
	}
	s := &email.Sender{Addr: "127.0.0.1:1"}
	if _, _, err := s.Compose(ok(func(*email.Mail) {}), key, first); err == nil || !strings.Contains(err.Error(), "Sender.From") {
		t.Errorf("without a sender: %v", err)
	}
}

// Wherever the spaces are, and however long the words, a header has no line that is
// empty or could be taken for the header's end.
func FuzzAHeaderHasNoEmptyLine(f *testing.F) {
	f.Add("a", "b")
	f.Add(strings.Repeat(" ", 300), strings.Repeat("x ", 200))
	f.Add(strings.Repeat("ä", 300), strings.Repeat("y", 75)+" "+strings.Repeat("z", 80))
	f.Add("x\r\n\r\n.\r\n", "\t\t \t"+strings.Repeat("w", 890))
	f.Fuzz(func(t *testing.T, subject, header string) {
		data, _, err := sender().Compose(email.Mail{To: []string{"ann@example.com"}, Subject: subject, Text: "body", Headers: map[string]string{"X-Fuzz": header}}, key, first)
		if err != nil {
			return
		}
		head, body, _ := strings.Cut(data, "\r\n\r\n")
		if strings.TrimSpace(body) != "body" {
			t.Errorf("the body is %q", body)
		}
		for line := range strings.SplitSeq(head, "\r\n") {
			if strings.TrimSpace(line) == "" || strings.ContainsAny(line, "\r\n\x00") || len(line) > 998 {
				t.Errorf("a line is %q", line)
			}
		}
		if n := len(parse(t, data).Header); n > 9 {
			t.Errorf("there are %d headers", n)
		}
	})
}

func TestAPayloadThatIsNoMail(t *testing.T) {
	t.Parallel()
	for payload, says := range map[string]string{
		`{"to": ["a@b"], "htlm": "x"}`: `"htlm" is not a field`,
		`{"to": "a@b"}`:                "to is a JSON string: must be a list of strings",
		`{"subject": 7}`:               "subject is a JSON number: must be a string",
		`[]`:                           "payload is a JSON array: must be an object",
		`{"to": `:                      "broken JSON",
		``:                             "broken JSON",
		`{} {}`:                        "goes on",
		"{\"text\": \"\xff\"}":         "not UTF-8",
		`{"headers": {"a": ["b"]}}`:    "must be",
		`{"attachments": [{"name": "a", "content": "%"}]}`: "broken JSON",
	} {
		_, err := email.DecodeJSON(message.NewMessage("1", []byte(payload)))
		if err == nil || !strings.Contains(err.Error(), says) || oncemill.VerdictOf(err) != oncemill.Never {
			t.Errorf("%s: the error is %v (%q)", payload, err, oncemill.VerdictOf(err))
		}
	}
	m, err := email.DecodeJSON(message.NewMessage("1", []byte(`{"to": ["a@b"], "attachments": [{"name": "a", "content": "aGk="}]}`)))
	if err != nil || m.To[0] != "a@b" || string(m.Attachments[0].Content) != "hi" {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestWrongFieldsAreNamed(t *testing.T) {
	t.Parallel()
	const addr = "smtp.example.com:587"
	for says, s := range map[string]*email.Sender{
		"Sender.Addr is empty":                  {},
		"Sender.Addr is \"smtp.example.com\"":   {Addr: "smtp.example.com"},
		"Sender.TLS is \"tls\"":                 {Addr: addr, TLS: "tls"},
		"password would go to smtp.example.com": {Addr: addr, TLS: email.NoTLS, Username: "u", Password: "p"},
		"Sender.Password is set without":        {Addr: addr, Password: "p"},
		"Sender.Username is set without":        {Addr: addr, Username: "u"},
		"Sender.Auth is \"NTLM\"":               {Addr: addr, Username: "u", Password: "p", Auth: "NTLM"},
		"Sender.Auth is set without":            {Addr: addr, Auth: email.Plain},
		"Sender.LocalName is":                   {Addr: addr, LocalName: "a b"},
		"Sender.From is":                        {Addr: addr, From: "shop"},
		"Sender.ReturnPath is":                  {Addr: addr, ReturnPath: "a@b\r\n"},
		"Sender.MessageIDDomain is":             {Addr: addr, MessageIDDomain: "größe.example"},
		"Sender.Timeout is -1s":                 {Addr: addr, Timeout: -time.Second},
		"Sender.MaxConns is -1":                 {Addr: addr, MaxConns: -1},
		"Sender.MaxBytes is -1":                 {Addr: addr, MaxBytes: -1},
		"Sender.LostReply is \"again\"":         {Addr: addr, LostReply: "again"},
	} {
		err := s.Check(t.Context())
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("the error is %v, and should say %q", err, says)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestWithoutAClaimNothingIsSent(t *testing.T) {
	t.Parallel()
	if _, err := sender().Handle(message.NewMessage("1", nil)); !errors.Is(err, oncemill.ErrNoClaim) {
		t.Errorf("the error is %v", err)
	}
	if err := sender().Consume(message.NewMessage("1", nil)); !errors.Is(err, oncemill.ErrNoClaim) {
		t.Errorf("the error is %v", err)
	}
}

func TestTheWordsOfAServerAreCleaned(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"ok":                          "ok",
		"a\r\nb\x1b[31m\u202e\xff\tc": "a b [31m \uFFFD c",
		strings.Repeat("ä", 50):       strings.Repeat("ä", 10) + "...",
		"x" + strings.Repeat("ä", 50): "x" + strings.Repeat("ä", 9) + "...",
	} {
		if got := email.Clean(text, 20); got != want {
			t.Errorf("%q became %q, not %q", text, got, want)
		}
	}
}
