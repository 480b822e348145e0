package webhook_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers/webhook"
	"github.com/oncemill/oncemill/middleware"
)

// An event that is delivered three times in a row and three times at once, through two
// receivers, is one row and one claim, and every delivery is answered with 200.
func TestAnEventIsStoredOnce(t *testing.T) {
	t.Parallel()
	for _, provider := range []string{"stripe", "github", "twilio"} {
		for _, atOnce := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, at once %t", provider, atOnce), func(t *testing.T) {
				t.Parallel()
				s := newSite(t)
				second := &site{t: t, db: s.db, inbox: &oncemill.Inbox{DB: s.db, LockWait: time.Minute}, log: s.log} // of another process
				receivers := []http.Handler{s.good()[provider].receiver, second.good()[provider].receiver}
				d := s.good()[provider].d
				answers := make([]*httptest.ResponseRecorder, 6)
				var wg sync.WaitGroup
				for i := range answers {
					wg.Go(func() { answers[i] = deliver(receivers[i%2], d) })
					if !atOnce {
						wg.Wait()
					}
				}
				wg.Wait()
				stored := 0
				for _, w := range answers {
					s.wantStatus(w, 200, "a delivery")
					if w.Body.String() == "stored\n" {
						stored++
					}
				}
				if got := s.only(); got.payload != d.body {
					t.Errorf("stored %q, want %q", got.payload, d.body)
				}
				if provider != "twilio" && stored != 1 {
					t.Errorf("%d deliveries were told that they have stored the event", stored)
				}
			})
		}
	}
}

// What a worker gets: the body byte for byte, under the key as its UUID.
func TestWhatAWorkerGets(t *testing.T) {
	t.Parallel()
	body := stripeEvent("evt_1", 1)
	bytes := "\x00\xff\r\n{} "
	for name, c := range map[string]struct {
		receiver func(s *site) http.Handler
		d        delivery
		uuid     string
		metadata map[string]string
	}{
		"stripe": {func(s *site) http.Handler { return s.stripe() }, fromStripe(stripeSecret, body, time.Now()), "evt_1", map[string]string{
			"webhook-provider": "stripe", "webhook-type": "invoice.paid", "webhook-key": "evt_1", "webhook-content-type": "application/json; charset=utf-8",
		}},
		"github, any bytes": {func(s *site) http.Handler { return s.github() }, fromGitHub(githubSecret, bytes, "guid"), "guid", map[string]string{
			"webhook-provider": "github", "webhook-type": "push", "webhook-key": "guid", "webhook-content-type": "application/json",
			"X-GitHub-Event": "push", "X-GitHub-Delivery": "guid", "X-GitHub-Hook-ID": "292430182",
		}},
		"github, odd headers": {func(s *site) http.Handler { return s.github() },
			fromGitHub(githubSecret, bytes, "guid").with("X-GitHub-Event", "pu\x00sh\r\n\xff").with("Content-Type", "a\tb").with("X-GitHub-Hook-ID"), "guid", map[string]string{
				"webhook-provider": "github", "webhook-type": "pu sh \uFFFD", "webhook-key": "guid", "webhook-content-type": "a b",
				"X-GitHub-Event": "pu sh \uFFFD", "X-GitHub-Delivery": "guid",
			}},
		"twilio": {func(s *site) http.Handler { return s.twilio() },
			fromTwilio(twilioSecret, "?order=7", smsBody, twilioURL+"?order=7"+strings.TrimPrefix(smsSigned, twilioURL), "token"), "token", map[string]string{
				"webhook-provider": "twilio", "webhook-type": "message.delivered", "webhook-key": "token",
				"webhook-content-type": "application/x-www-form-urlencoded", "webhook-query": "order=7",
			}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.wantStatus(deliver(c.receiver(s), c.d), 200, name)
			got := s.only()
			if got.topic != "events" || got.uuid != c.uuid || got.payload != c.d.body {
				t.Errorf("got %+v", got)
			}
			if fmt.Sprint(got.metadata) != fmt.Sprint(c.metadata) {
				t.Errorf("metadata: got  %v\nwant %v", got.metadata, c.metadata)
			}
			msg := message.NewMessage(got.uuid, message.Payload(got.payload))
			msg.Metadata = got.metadata
			for by, key := range map[string]middleware.KeyFunc{"UUID": middleware.ByUUID, "metadata": middleware.ByMetadata(webhook.KeyMetadata)} {
				if k, err := key(msg); k != c.uuid || err != nil {
					t.Errorf("by %s a worker claims %q, %v", by, k, err)
				}
			}
		})
	}
}

// Thin events and those of other API versions have their ids in the same place.
func TestEventsOfAnyVersion(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, body := range []string{
		`{"id": "evt_test_65R9Ijk8", "object": "v2.core.event", "type": "v1.billing.meter.error_report_triggered", "livemode": true, "created": "` + time.Now().Format(time.RFC3339) + `"}`,
		`{"id": "evt_old", "object": "event", "type": "charge.succeeded", "api_version": "2011-01-01", "created": 1, "livemode": false}`,
		`{"id": "evt_bare", "object": "event", "type": "x"}`,
	} {
		s.wantStatus(deliver(s.stripe(), fromStripe(stripeSecret, body, time.Now())), 200, body)
	}
	s.wantStored(3)
}

// Stripe's body may change from one delivery to the next, GitHub's does not: there the
// same key with another body is refused.
func TestARedeliveryWithAnotherBody(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for pending := range 3 {
		s.wantStatus(deliver(s.stripe(), fromStripe(stripeSecret, stripeEvent("evt_1", pending), time.Now())), 200, "stripe")
	}
	s.wantStored(1)
	s.wantStatus(deliver(s.github(), fromGitHub(githubSecret, `{"a": 1}`, "guid")), 200, "github")
	s.wantStatus(deliver(s.github(), fromGitHub(githubSecret, `{"a": 2}`, "guid")), 409, "github, another body")
	s.wantStatus(deliver(s.github(), fromGitHub(githubSecret, `{"a": 1}`, "guid")), 200, "github, redelivered")
	s.wantStored(2)
}

// Without Twilio's token, what an event is about tells it from others.
func TestKeysOfTwiliosEvents(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, c := range []struct{ body, signed, uuid, kind string }{
		{"MessageSid=SM1&MessageStatus=sent", "MessageSidSM1MessageStatussent", "SM1:sent", "message.sent"},
		{"MessageSid=SM1&MessageStatus=delivered", "MessageSidSM1MessageStatusdelivered", "SM1:delivered", "message.delivered"},
		{"SmsSid=SM2&SmsStatus=received&Body=Hi", "BodyHiSmsSidSM2SmsStatusreceived", "SM2:received", "message.received"},
		{"RecordingSid=RE1&RecordingStatus=completed&CallSid=CA1", "CallSidCA1RecordingSidRE1RecordingStatuscompleted", "RE1:completed", "recording.completed"},
		{"CallSid=CA1&CallStatus=in-progress&SequenceNumber=2", "CallSidCA1CallStatusin-progressSequenceNumber2", "CA1:in-progress:2", "call.in-progress"},
		{"CallSid=CA1&CallStatus=in-progress&Digits=1", "CallSidCA1CallStatusin-progressDigits1", "", "call.in-progress"},
		{"CallSid=CA1&CallStatus=in-progress&Digits=2", "CallSidCA1CallStatusin-progressDigits2", "", "call.in-progress"},
		{"ConferenceSid=CF1&StatusCallbackEvent=participant-join&SequenceNumber=1&CallSid=CA1", "CallSidCA1ConferenceSidCF1SequenceNumber1StatusCallbackEventparticipant-join",
			"CF1:participant-join:1", "conference.participant-join"},
		{"Other=1", "Other1", "", "form"},
	} {
		before := s.count(`SELECT count(*) FROM oncemill.outbox`)
		for range 2 {
			s.wantStatus(deliver(s.twilio(), fromTwilio(twilioSecret, "", c.body, twilioURL+c.signed, "")), 200, c.body)
		}
		s.wantStored(before + 1)
		var uuid, kind string
		must(t, s.db.QueryRow(`SELECT uuid, metadata->>'webhook-type' FROM oncemill.outbox ORDER BY id DESC LIMIT 1`).Scan(&uuid, &kind))
		if c.uuid == "" && !strings.HasPrefix(uuid, "sha256:") || c.uuid != "" && uuid != c.uuid || kind != c.kind {
			t.Errorf("%s: got key %q and type %q", c.body, uuid, kind)
		}
	}
}

// Twilio would send a plain answer to whoever wrote the message.
func TestTwilioIsAnsweredNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for range 2 {
		w := deliver(s.twilio(), fromTwilio(twilioSecret, "", smsBody, smsSigned, "token"))
		if !strings.HasPrefix(w.Header().Get("Content-Type"), "text/xml") || !strings.HasSuffix(w.Body.String(), "<Response></Response>") {
			t.Errorf("answered %v %s", w.Header(), w.Body)
		}
	}
}

// Connection overrides are a fragment of the URL, with and without which Twilio may sign.
func TestTwiliosURLMayHaveAFragment(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	receiver := s.twilio()
	receiver.URL += "#rc=5&rp=all"
	parameters := strings.TrimPrefix(smsSigned, twilioURL)
	s.wantStatus(deliver(receiver, fromTwilio(twilioSecret, "?a=1", smsBody, twilioURL+"?a=1"+parameters, "1")), 200, "signed without it")
	s.wantStatus(deliver(receiver, fromTwilio(twilioSecret, "?a=1", smsBody, twilioURL+"?a=1#rc=5&rp=all"+parameters, "2")), 200, "signed with it")
	s.wantStatus(deliver(receiver, fromTwilio(twilioSecret, "?a=1", smsBody, twilioURL+"#rc=5&rp=all?a=1"+parameters, "3")), 403, "signed elsewhere")
	s.wantStored(2)
}

// An event from before what the purge has left, and without a claim, may have been
// stored before. In test mode clocks say anything.
func TestAnEventThatIsOlderThanThePurgeIsRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	_, err := s.db.Exec(`INSERT INTO oncemill.watermarks VALUES ('webhook/stripe', now() - interval '7 days')`)
	must(t, err)
	event := func(id string, live bool, at string) delivery {
		return fromStripe(stripeSecret, fmt.Sprintf(`{"id": %q, "object": "event", "type": "x", "livemode": %t, "created": %s}`, id, live, at), time.Now())
	}
	old := time.Now().Add(-8 * 24 * time.Hour)
	s.wantStatus(deliver(s.stripe(), event("evt_1", true, fmt.Sprint(old.Unix()))), 409, "an old event")
	s.wantStatus(deliver(s.stripe(), event("evt_2", true, old.Format(`"`+time.RFC3339+`"`))), 409, "an old thin event")
	s.wantStored(0)
	s.wantStatus(deliver(s.stripe(), event("evt_3", false, fmt.Sprint(old.Unix()))), 200, "one of test mode")
	s.wantStatus(deliver(s.stripe(), event("evt_4", true, fmt.Sprint(time.Now().Unix()))), 200, "a new one")
	s.wantStored(2)
}

// A key of one's own, and one that is none.
func TestAKeyOfOnesOwn(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	var key string
	var fails error
	github := s.github()
	github.Key = func(d *webhook.Delivery) (string, error) {
		if d.Provider != "github" || string(d.Body) != `{}` || d.Header.Get("X-GitHub-Event") != "push" {
			t.Errorf("got %+v", d)
		}
		return key, fails
	}
	for _, key = range []string{"", "a b", "a\x00", "\xff", strings.Repeat("x", 256)} {
		s.wantStatus(deliver(github, fromGitHub(githubSecret, `{}`, "guid")), 400, key)
	}
	key, fails = "k", errors.New("no")
	s.wantStatus(deliver(github, fromGitHub(githubSecret, `{}`, "guid")), 400, "an error")
	s.wantStored(0)
	key, fails = strings.Repeat("x", 255), nil
	s.wantStatus(deliver(github, fromGitHub(githubSecret, `{}`, "guid")), 200, "a key")
	s.wantStored(1)
}
