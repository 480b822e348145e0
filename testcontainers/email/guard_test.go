package email_test

import (
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/email"
	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/middleware"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/smtpserver"
)

// A shop is a whole consumer of mails: a broker, guarded handlers in two processes (as
// far as anybody can tell), a relay and a mail server.
type shop struct {
	*post
	db        *sql.DB
	nc        *nats.Conn
	topic     string
	lost      email.LostReply
	keyLife   time.Duration
	publisher *jetstream.Publisher
	log       *testenv.Log
}

func newShop(t *testing.T, options smtpserver.Options) *shop {
	t.Helper()
	db := testcontainers.Postgres(t).DB
	nc, err := nats.Connect(testcontainers.NATS(t).URL, nats.MaxReconnects(-1))
	must(t, err)
	t.Cleanup(nc.Close)
	s := &shop{
		post: openPost(t, options, (&oncemill.Inbox{DB: db}).Consumer("mails")), db: db, nc: nc,
		topic: "mails-" + strings.ToLower(rand.Text()[:10]), publisher: &jetstream.Publisher{Conn: nc}, log: &testenv.Log{},
	}
	js, err := natsjs.New(nc)
	must(t, err)
	_, err = js.CreateStream(within(t), natsjs.StreamConfig{Name: s.topic, Subjects: []string{s.topic}})
	must(t, err)
	return s
}

// open runs it all until the returned function is called.
func (s *shop) open(workers int) (shut func()) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	run := func(f func(context.Context) error) {
		all.Go(func() {
			if err := f(ctx); err != nil {
				s.t.Errorf("ended: %v", err)
			}
		})
	}
	var senders []*email.Sender
	for range workers {
		sender := &email.Sender{
			Addr: s.server.Addr(), TLSConfig: s.server.ClientTLS(), From: "shop@example.com", Username: "shop", Password: password,
			Timeout: 4 * time.Second, MaxConns: 4, LostReply: s.lost,
		}
		senders = append(senders, sender)
		guard := middleware.Guard{
			Inbox:    &oncemill.Inbox{DB: s.db, Logger: slog.New(slog.NewTextHandler(s.log, nil))},
			Consumer: "mails", Lease: 10 * time.Second, Timeout: sender.Timeout, KeyLifetime: s.keyLife, Probe: sender.Check,
		}
		router, err := message.NewRouter(message.RouterConfig{CloseTimeout: time.Minute}, watermill.NopLogger{})
		must(s.t, err)
		subscriber := &jetstream.Subscriber{
			Conn: s.nc, Group: "mails", MaxInFlight: 8,
			NakDelay: func(n uint64) time.Duration { return min(time.Duration(n)*20*time.Millisecond, 200*time.Millisecond) },
		}
		router.AddConsumerHandler("mails", s.topic, subscriber, sender.Consume).AddMiddleware(guard.Middleware)
		run(router.Run)
	}
	run((&outbox.Relay{DB: s.db, Sink: &jetstream.Sink{Conn: s.nc}, PollInterval: 50 * time.Millisecond}).Run)
	return func() {
		cancel()
		all.Wait()
		for _, sender := range senders {
			must(s.t, sender.Close())
		}
	}
}

// order publishes mails, each of them twice. Every tenth one is for somebody whom the
// server does not know.
func (s *shop) order(mails int) {
	s.t.Helper()
	for i := range 2 * mails {
		to := fmt.Sprintf("ann+%d@example.com", i%mails)
		if i%mails%10 == 9 {
			to = fmt.Sprintf("nobody+%d@example.com", i%mails)
		}
		m := email.Mail{To: []string{to}, Subject: "Order " + strconv.Itoa(i%mails), Text: "It is on its way."}
		must(s.t, s.publisher.Publish(s.topic, message.NewMessage("order-"+strconv.Itoa(i%mails), payload(s.t, m))))
	}
}

// await waits until so many claims are settled or in doubt with their messages parked.
func (s *shop) await(settled, ended int) {
	s.t.Helper()
	for end := time.Now().Add(90 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		var s1, parked int
		must(s.t, s.db.QueryRow(`SELECT (SELECT count(*) FROM oncemill.claims WHERE settled_at IS NOT NULL), (SELECT count(*) FROM oncemill.parked)`).Scan(&s1, &parked))
		if s1 >= settled && s1+parked == ended {
			return
		}
		if time.Now().After(end) {
			s.t.Fatalf("%d claims are settled and %d messages parked, of %d", s1, parked, ended)
		}
	}
}

// ledger counts the mails by what is before the @ in their Message-ID.
func (s *shop) ledger() map[string]int {
	sent := map[string]int{}
	for _, m := range s.server.Ledger() {
		key, _, _ := strings.Cut(strings.TrimPrefix(m.MessageID, "<"), "@")
		sent[key]++
	}
	return sent
}

// audit compares what was sent with what the claims say, and returns how many claims
// are in doubt.
func (s *shop) audit(mails int) (inDoubt int) {
	s.t.Helper()
	sent := s.ledger()
	rows, err := s.db.Query(`SELECT key, COALESCE(outcome, ''), COALESCE(convert_from(result, 'UTF8')::json->>'message_id', '') FROM oncemill.claims WHERE consumer = 'mails'`)
	must(s.t, err)
	defer rows.Close()
	claims := 0
	for rows.Next() {
		var key, outcome, id string
		must(s.t, rows.Scan(&key, &outcome, &id))
		provider := oncemill.ProviderKey("mails", key)
		n := sent[provider]
		delete(sent, provider)
		claims++
		unknown := strings.HasSuffix(key, "9")
		switch {
		case outcome == "settled" && n == 1 && !unknown:
		case outcome == "failed" && n == 0 && unknown:
		case outcome == "" && n <= 1 && !unknown:
			inDoubt++
		case s.lost == email.Resend && outcome == "settled" && n >= 1:
		default:
			s.t.Errorf("%s is %q, and was sent %d times", key, outcome, n)
		}
		if outcome == "settled" && id != "" && id != "<"+provider+"@example.com>" {
			s.t.Errorf("%s has the receipt of %s", key, id)
		}
	}
	must(s.t, rows.Err())
	if claims != mails || len(sent) != 0 {
		s.t.Errorf("there are %d claims of %d, and without a claim were sent %v", claims, mails, sent)
	}
	if text := s.log.String(); strings.Contains(text, password) {
		s.t.Errorf("the log tells the password: %s", text)
	}
	return inDoubt
}

// resolve does what a person does: looks into the server's log for each mail in doubt.
func (s *shop) resolve() {
	s.t.Helper()
	sent := s.ledger()
	inbox := &oncemill.Inbox{DB: s.db}
	all, err := inbox.InDoubt(within(s.t), "mails", oncemill.InDoubt{}, 1000)
	must(s.t, err)
	for _, d := range all {
		if !strings.Contains(d.Reason, "<"+d.ProviderKey()+"@example.com>") {
			s.t.Errorf("the reason does not say what to look for: %s", d.Reason)
		}
		verdict := oncemill.NotHappened
		if sent[d.ProviderKey()] > 0 {
			verdict = oncemill.Happened
		}
		must(s.t, inbox.Consumer("mails").Resolve(within(s.t), d.Key, d.Token, verdict, "the server's log"))
	}
}

func faults(lost float64) smtpserver.Options {
	nobody := func(e smtpserver.Event) bool { return strings.Contains(e.Argument, "nobody") }
	return smtpserver.Options{Seed: 5, Users: map[string]string{"shop": password}, Faults: []smtpserver.Fault{
		{At: smtpserver.Recipient, Code: 550, Text: "5.1.1 no such user", When: nobody},
		{At: smtpserver.Greeting, Code: 421, Rate: 0.1},
		{At: smtpserver.Auth, Code: 454, Rate: 0.05},
		{At: smtpserver.MailFrom, Code: 451, Rate: 0.05},
		{At: smtpserver.Recipient, Drop: true, Rate: 0.05},
		{At: smtpserver.Data, Code: 452, Rate: 0.05},
		{At: smtpserver.EndOfData, Code: 451, Rate: 0.1},
		{At: smtpserver.EndOfData, Drop: true, Rate: lost},
		{At: smtpserver.Accepted, Drop: true, Rate: lost},
		{At: smtpserver.Reset, Drop: true, Rate: 0.05},
	}}
}

// With lost replies and every other kind of failure: no mail is sent twice, none is
// lost, and which ones nobody can know about is known.
func TestMailsThroughAGuardAreSentAtMostOnce(t *testing.T) {
	t.Parallel()
	const mails = 100
	s := newShop(t, faults(0.1))
	begin := time.Now()
	s.order(mails)
	shut := s.open(2)
	s.await(mails/2, mails)
	took := time.Since(begin)
	s.order(mails) // all of them once more
	doubted := s.audit(mails)
	if doubted == 0 {
		t.Error("no mail is in doubt, of 100 with 20 lost replies")
	}
	s.server.Script(smtpserver.Fault{At: smtpserver.Recipient, Code: 550, When: isRecipient("nobody")})
	s.resolve()
	s.await(mails, mails)
	shut()
	if left := s.audit(mails); left != 0 {
		t.Errorf("%d mails are in doubt", left)
	}
	if n := len(s.server.Ledger()); n != mails*9/10 {
		t.Errorf("%d mails were sent, want %d", n, mails*9/10)
	}
	sofar, _ := s.server.Connections()
	t.Logf("%d mails in %v over %d connections, %d of them in doubt; %s", mails, took.Round(time.Millisecond), sofar, doubted, s.events())
}

func (s *shop) events() (text string) {
	must(s.t, s.db.QueryRow(`SELECT string_agg(kind || ' ' || n, ', ' ORDER BY kind) FROM (SELECT kind, count(*) AS n FROM oncemill.events GROUP BY kind) e`).Scan(&text))
	return text
}

// With Resend no mail is lost, and some are sent again with the same Message-ID.
func TestMailsThroughAGuardAreSentAtLeastOnceWithResend(t *testing.T) {
	t.Parallel()
	const mails = 50
	options := faults(0.15)
	s := newShop(t, options)
	s.lost, s.keyLife = email.Resend, time.Hour
	s.order(mails)
	shut := s.open(2)
	s.await(mails, mails)
	shut()
	s.audit(mails)
	twice := 0
	for _, n := range s.ledger() {
		if n > 1 {
			twice++
		}
	}
	if twice == 0 {
		t.Error("no mail was sent twice, which is what Resend is about")
	}
	t.Logf("%d of %d mails were sent more than once; %s", twice, mails, s.events())
}
