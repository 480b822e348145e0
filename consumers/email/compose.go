package email

import (
	"bytes"
	"fmt"
	"maps"
	"mime"
	"net/mail"
	"net/textproto"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	gomail "github.com/wneessen/go-mail"
)

// mostLine is the longest line of a mail without its line break (RFC 5321,
// 4.5.3.1.6).
const mostLine = 998

// A letter is a mail as it goes to the server.
type letter struct {
	messageID  string
	from       string   // in angle brackets
	recipients []string // in angle brackets, each once
	utf8       bool     // its addresses need SMTPUTF8
	ownFrom    bool     // the envelope's sender comes from the mail and not from the Sender
	data       []byte   // header and body
}

// compose makes a letter. All of it is in memory before anything is sent: a mail of
// which the first half was sent has no good end.
func (s *settings) compose(m Mail, e effect) (*letter, error) {
	if m.Subject == "" && m.Text == "" && m.HTML == "" {
		return nil, wrong("subject", "is empty, and text and html are too: give one of them")
	}
	g := gomail.NewMsg(gomail.WithNoDefaultUserAgent())
	l := new(letter)
	if err := s.address(g, l, m); err != nil {
		return nil, err
	}
	if err := s.head(g, l, m, e); err != nil {
		return nil, err
	}
	if err := s.body(g, m); err != nil {
		return nil, err
	}
	var data bytes.Buffer
	if _, err := g.WriteTo(&data); err != nil {
		return nil, wrong("payload", "cannot be made a mail: %v", err)
	}
	l.data = data.Bytes()
	if len(l.data) > s.maxBytes {
		return nil, wrong("payload", "makes a mail of %d bytes: at most %d (Sender.MaxBytes)", len(l.data), s.maxBytes)
	}
	return l, checkLines(l.data)
}

// address fills in the envelope and the headers that name people.
func (s *settings) address(g *gomail.Msg, l *letter, m Mail) error {
	from := s.from
	if m.From != "" {
		a, err := parseAddress(m.From)
		if err != nil {
			return wrong("from", "%v", err)
		}
		from = a
	}
	if from == nil {
		return wrong("from", "is empty: give one, or set Sender.From")
	}
	envelope := from
	if s.returnPath != nil {
		envelope = s.returnPath
	}
	l.ownFrom = m.From != "" && s.returnPath == nil
	l.from = bare(envelope)
	g.FromMailAddress(from)
	to, err := l.addressees(g, m)
	if err != nil {
		return err
	}
	all := append(to, from, envelope)
	if m.ReplyTo != "" {
		a, err := parseAddress(m.ReplyTo)
		if err != nil {
			return wrong("reply_to", "%v", err)
		}
		g.ReplyToMailAddress(a)
		all = append(all, a)
	}
	l.utf8 = slices.ContainsFunc(all, func(a *mail.Address) bool { return !isASCII(a.Address) })
	return nil
}

// addressees fills in the recipients and the headers that name them, and returns all
// of their addresses.
func (l *letter) addressees(g *gomail.Msg, m Mail) (all []*mail.Address, err error) {
	for _, field := range []struct {
		name string
		is   []string
		set  func(...*mail.Address)
	}{{"to", m.To, g.ToMailAddress}, {"cc", m.Cc, g.CcMailAddress}, {"bcc", m.Bcc, nil}} {
		addresses, err := parseAll(field.name, field.is)
		if err != nil {
			return nil, err
		}
		if field.set != nil && len(addresses) > 0 {
			field.set(addresses...)
		}
		all = append(all, addresses...)
		l.addRecipients(addresses)
	}
	switch n := len(l.recipients); {
	case n == 0:
		return nil, wrong("to", "is empty, and cc and bcc are too: give one recipient at least")
	case n > mostRecipients:
		return nil, wrong("to", "cc and bcc have %d recipients: at most %d in a mail; send several mails", n, mostRecipients)
	}
	return all, nil
}

// addRecipients adds those that are not there yet: who is both in To and in Cc gets
// one copy.
func (l *letter) addRecipients(addresses []*mail.Address) {
	for _, a := range addresses {
		if path := bare(a); !slices.Contains(l.recipients, path) {
			l.recipients = append(l.recipients, path)
		}
	}
}

// bare returns an address as MAIL and RCPT take it.
func bare(a *mail.Address) string { return "<" + a.Address + ">" }

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r >= utf8.RuneSelf })
}

// head fills in the other headers.
func (s *settings) head(g *gomail.Msg, l *letter, m Mail, e effect) error {
	subject, err := headerText("subject", m.Subject)
	if err != nil {
		return err
	}
	if subject != "" {
		g.Subject(subject)
	}
	if len(m.Headers) > mostHeaders {
		return wrong("headers", "has %d: at most %d", len(m.Headers), mostHeaders)
	}
	seen := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(m.Headers)) {
		canonical := textproto.CanonicalMIMEHeaderKey(name)
		if err := checkHeaderName(name, canonical); err != nil {
			return err
		}
		if seen[canonical] {
			return wrong("headers", "has %s twice, in different cases: give it once", canonical)
		}
		seen[canonical] = true
		value, err := headerText("headers."+name, m.Headers[name])
		if err != nil {
			return err
		}
		g.SetGenHeader(gomail.Header(name), value)
	}
	id := e.providerKey + "@" + s.idDomain(l.from)
	l.messageID = "<" + id + ">"
	g.SetMessageIDWithValue(id)
	date := e.first
	if date.IsZero() {
		date = time.Now()
	}
	g.SetDateWithValue(date)
	return nil
}

// idDomain returns what follows the @ in a Message-ID, which must be ASCII.
func (s *settings) idDomain(from string) string {
	if s.messageIDDomain != "" {
		return s.messageIDDomain
	}
	domain := strings.TrimSuffix(from[strings.LastIndexByte(from, '@')+1:], ">")
	if !isDomain(domain) {
		return "mail.invalid"
	}
	return domain
}

// reserved are the headers that the Sender makes, or that servers do.
var reserved = []string{
	"From", "Sender", "To", "Cc", "Bcc", "Reply-To", "Subject", "Date", "Message-Id", "Mime-Version",
	"Return-Path", "Received",
}

func checkHeaderName(name, canonical string) error {
	const most = 70
	valid := name != "" && len(name) <= most
	for _, r := range name {
		valid = valid && r > ' ' && r < 0x7f && r != ':'
	}
	switch {
	case !valid:
		return wrong("headers", "has the name %.80q: must be 1 to %d printable ASCII characters without colon and space", name, most)
	case slices.Contains(reserved, canonical), strings.HasPrefix(canonical, "Content-"), strings.HasPrefix(canonical, "Resent-"):
		return wrong("headers."+name, "is not to be set here: the mail's other fields and the Sender do it")
	}
	return nil
}

// headerText checks a header's value. White space is made single spaces: where a
// line is broken, more of it could become a line that some servers take for the
// header's end.
func headerText(field, value string) (string, error) {
	if !utf8.ValidString(value) {
		return "", wrong(field, "is not UTF-8")
	}
	if i := strings.IndexFunc(value, func(r rune) bool { return unicode.IsControl(r) && r != '\t' }); i >= 0 {
		return "", wrong(field, "has the character %q: must not contain line breaks or other control characters", value[i:i+1])
	}
	if len(value) > mostText {
		return "", wrong(field, "has %d bytes: at most %d", len(value), mostText)
	}
	words := strings.FieldsFunc(value, func(r rune) bool { return r == ' ' || r == '\t' })
	for _, word := range words {
		if len(word) > mostLine-100 && isASCII(value) {
			return "", wrong(field, "has %d characters without a space: at most %d, since a line cannot be broken there", len(word), mostLine-100)
		}
	}
	return strings.Join(words, " "), nil
}

// body fills in text, HTML and attachments, in encodings that any server takes.
func (s *settings) body(g *gomail.Msg, m Mail) error {
	size := len(m.Text) + len(m.HTML)
	for _, a := range m.Attachments {
		size += len(a.Content)
	}
	switch {
	case size > s.maxBytes:
		return wrong("payload", "has %d bytes of text, html and attachments: at most %d (Sender.MaxBytes)", size, s.maxBytes)
	case !utf8.ValidString(m.Text):
		return wrong("text", "is not UTF-8")
	case !utf8.ValidString(m.HTML):
		return wrong("html", "is not UTF-8")
	case len(m.Attachments) > mostAttachments:
		return wrong("attachments", "has %d: at most %d", len(m.Attachments), mostAttachments)
	}
	switch {
	case m.HTML == "":
		g.SetBodyString(gomail.TypeTextPlain, m.Text)
	case m.Text == "":
		g.SetBodyString(gomail.TypeTextHTML, m.HTML)
	default:
		g.SetBodyString(gomail.TypeTextPlain, m.Text)
		g.AddAlternativeString(gomail.TypeTextHTML, m.HTML)
	}
	for i, a := range m.Attachments {
		if err := attach(g, fmt.Sprintf("attachments[%d]", i), a); err != nil {
			return err
		}
	}
	return nil
}

func attach(g *gomail.Msg, field string, a Attachment) error {
	name, err := headerText(field+".name", a.Name)
	switch {
	case err != nil:
		return err
	case name == "":
		return wrong(field+".name", "is empty: give a file name")
	case len(name) > 255:
		return wrong(field+".name", "has %d bytes: at most 255", len(name))
	}
	kind := a.ContentType
	if kind == "" {
		kind = "application/octet-stream"
	}
	parsed, parameters, err := mime.ParseMediaType(kind)
	if err != nil || !strings.Contains(parsed, "/") || len(parameters) > 0 && !strings.HasPrefix(parsed, "text/") {
		return wrong(field+".content_type", "is %.80q: must be one such as application/pdf", a.ContentType)
	}
	formatted := mime.FormatMediaType(parsed, parameters)
	if formatted == "" || !isASCII(formatted) || len(formatted) > 200 {
		return wrong(field+".content_type", "is %.80q: must be one such as application/pdf", a.ContentType)
	}
	return g.AttachReader(name, bytes.NewReader(a.Content), gomail.WithFileContentType(gomail.ContentType(formatted)))
}

// checkLines makes sure that nobody can see the end of the mail, or of its header, at
// another place than we do: every line ends in CR LF, neither of them stands alone,
// and no line is longer than a server has to take.
func checkLines(data []byte) error {
	for len(data) > 0 {
		line, rest, found := bytes.Cut(data, []byte("\r\n"))
		switch {
		case bytes.ContainsAny(line, "\r\n"):
			return wrong("payload", "makes a mail with a line break that is not CR LF")
		case len(line) > mostLine:
			return wrong("payload", "makes a mail with a line of %d bytes: at most %d; it begins with %.40q", len(line), mostLine, line)
		case !found:
			return nil
		}
		data = rest
	}
	return nil
}
