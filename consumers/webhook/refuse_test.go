package webhook_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/oncemill/oncemill/consumers/webhook"
)

// Altered bodies, signatures and times, and other secrets: nothing is stored.
func TestWhatIsNotSignedByTheProviderIsRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	now := time.Now()
	stripe, github := fromStripe(stripeSecret, stripeEvent("evt_1", 1), now), fromGitHub(githubSecret, `{"ref": "main"}`, "guid-1")
	twilio := fromTwilio(twilioSecret, "", smsBody, smsSigned, "token")
	signature := stripe.header.Get("Stripe-Signature")
	for _, c := range []struct {
		name     string
		receiver http.Handler
		d        delivery
		want     int
	}{
		{"stripe: another body", s.stripe(), stripe.withBody(stripeEvent("evt_2", 1)), 403},
		{"stripe: a byte more", s.stripe(), stripe.withBody(stripe.body + " "), 403},
		{"stripe: another signature", s.stripe(), stripe.with("Stripe-Signature", strings.Replace(signature, "v1=", "v1=00", 1)), 403},
		{"stripe: another scheme", s.stripe(), stripe.with("Stripe-Signature", strings.Replace(signature, "v1=", "v0=", 1)), 403},
		{"stripe: another time", s.stripe(), stripe.with("Stripe-Signature", strings.Replace(signature, fmt.Sprint(now.Unix()), fmt.Sprint(now.Unix()+1), 1)), 403},
		{"stripe: no time", s.stripe(), stripe.with("Stripe-Signature", signature[strings.Index(signature, "v1="):]), 403},
		{"stripe: another secret", s.stripe(), fromStripe("whsec_other", stripe.body, now), 403},
		{"github: another body", s.github(), github.withBody(`{"ref": "mine"}`), 403},
		{"github: another secret", s.github(), fromGitHub("other", github.body, "guid-1"), 403},
		{"github: no secret", s.github(), fromGitHub("", github.body, "guid-1"), 403},
		{"github: a digit less", s.github(), github.with("X-Hub-Signature-256", github.header.Get("X-Hub-Signature-256")[:70]), 400},
		{"github: SHA-1", s.github(), github.with("X-Hub-Signature-256").with("X-Hub-Signature", "sha1=01dc10d0c83e72ed246219cdd91669667fe2ca59"), 400},
		{"github: SHA-1 under the other name", s.github(), github.with("X-Hub-Signature-256", "sha1=01dc10d0c83e72ed246219cdd91669667fe2ca59"), 400},
		{"twilio: another body", s.twilio(), twilio.withBody(strings.Replace(smsBody, "delivered", "failed", 1)), 403},
		{"twilio: a parameter more", s.twilio(), twilio.withBody(smsBody + "&Body=x"), 403},
		{"twilio: another query", s.twilio(), fromTwilio(twilioSecret, "?x=1", smsBody, smsSigned, ""), 403},
		{"twilio: another secret", s.twilio(), fromTwilio("other", "", smsBody, smsSigned, ""), 403},
		{"twilio: another kind of body", s.twilio(), twilio.with("Content-Type", "application/json"), 400},
		{"twilio: no kind of body", s.twilio(), twilio.with("Content-Type"), 400},
		{"twilio: two hashes", s.twilio(), fromTwilio(twilioSecret, "?bodySHA256=00&bodySHA256=11", smsBody, smsSigned, ""), 400},
	} {
		s.wantStatus(deliver(c.receiver, c.d), c.want, c.name)
	}
	s.wantStored(0)
}

// A body that Twilio has signed as JSON is not one that somebody can send as a form, of
// which only the parameters are signed.
func TestATwilioBodyIsNeverUnsigned(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	const query = "?bodySHA256=0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620"
	stolen := fromTwilio(twilioSecret, query, "=", twilioURL+query, "token")
	s.wantStatus(deliver(s.twilio(), stolen), 403, "the signature of another body's hash")
	s.wantStored(0)
}

// What is signed by the provider and yet nothing that it sends.
func TestWhatIsNoEventIsRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for name, body := range map[string]string{
		"broken JSON":         `{"id": "evt_1", "object": "event"`,
		"two values":          `{"id": "evt_1", "object": "event", "type": "x"} {}`,
		"a NUL":               "{\"id\": \"evt_1\x00\", \"object\": \"event\", \"type\": \"x\"}",
		"no object":           `"evt_1"`,
		"null":                `null`,
		"a list":              `[]`,
		"no id":               `{"object": "event", "type": "x"}`,
		"an id in capitals":   `{"ID": "evt_1", "object": "event", "type": "x"}`,
		"a number for an id":  `{"id": 1, "object": "event", "type": "x"}`,
		"an empty id":         `{"id": "", "object": "event", "type": "x"}`,
		"another id":          `{"id": "in_1", "object": "event", "type": "x"}`,
		"an id with a NUL":    `{"id": "evt_\u0000", "object": "event", "type": "x"}`,
		"an id with spaces":   `{"id": "evt_ 1", "object": "event", "type": "x"}`,
		"an id that is long":  `{"id": "evt_` + strings.Repeat("x", 300) + `", "object": "event", "type": "x"}`,
		"another object":      `{"id": "evt_1", "object": "invoice", "type": "x"}`,
		"no type":             `{"id": "evt_1", "object": "event"}`,
		"a type that is none": `{"id": "evt_1", "object": "event", "type": {}}`,
	} {
		s.wantStatus(deliver(s.stripe(), fromStripe(stripeSecret, body, time.Now())), 400, "stripe: "+name)
	}
	github := fromGitHub(githubSecret, `{}`, "guid")
	s.wantStatus(deliver(s.github(), github.with("X-GitHub-Delivery", "a b")), 400, "github: a space in the id")
	s.wantStatus(deliver(s.github(), github.with("X-GitHub-Delivery", "a\x00")), 400, "github: a NUL in the id")
	s.wantStatus(deliver(s.github(), github.with("X-GitHub-Delivery", strings.Repeat("x", 256))), 400, "github: a long id")
	s.wantStatus(deliver(s.twilio(), fromTwilio(twilioSecret, "", "a=%zz", twilioURL+"a%zz", "")), 400, "twilio: a broken form")
	s.wantStatus(deliver(s.twilio(), fromTwilio(twilioSecret, "", "MessageSid=%00&MessageStatus=x", twilioURL+"MessageSid\x00MessageStatusx", "")), 400, "twilio: a NUL in the id")
	s.wantStatus(deliver(s.twilio(), fromTwilio(twilioSecret, "", smsBody, smsSigned, "a b")), 400, "twilio: a space in the token")
	s.wantStored(0)
}

// Each receiver, a good delivery to it, and the headers that it needs once.
func (s *site) good() map[string]goodDelivery {
	return map[string]goodDelivery{
		"stripe": {s.stripe(), fromStripe(stripeSecret, stripeEvent("evt_1", 1), time.Now()), []string{"Stripe-Signature"}, nil},
		"github": {s.github(), fromGitHub(githubSecret, `{}`, "guid"),
			[]string{"X-Hub-Signature-256", "X-GitHub-Delivery", "X-GitHub-Event"}, []string{"X-GitHub-Hook-ID"}},
		"twilio": {s.twilio(), fromTwilio(twilioSecret, "", smsBody, smsSigned, "token"),
			[]string{"X-Twilio-Signature"}, []string{"I-Twilio-Idempotency-Token"}},
	}
}

type goodDelivery struct {
	receiver http.Handler
	d        delivery
	needed   []string
	single   []string
}

func TestRequestsThatAreWrongAreRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for provider, g := range s.good() {
		for _, name := range g.needed {
			value := g.d.header.Get(name)
			s.wantStatus(deliver(g.receiver, g.d.with(name)), 400, provider+" without "+name)
			s.wantStatus(deliver(g.receiver, g.d.with(name, "")), 400, provider+" with an empty "+name)
			s.wantStatus(deliver(g.receiver, g.d.with(name, value, value)), 400, provider+" with two "+name)
			s.wantStatus(deliver(g.receiver, g.d.with(name, value, "x")), 400, provider+" with another "+name)
		}
		for _, name := range append(g.single, "Content-Type") {
			s.wantStatus(deliver(g.receiver, g.d.with(name, g.d.header.Get(name), "x")), 400, provider+" with two "+name)
		}
		for _, method := range []string{"GET", "HEAD", "PUT", "DELETE", "OPTIONS"} {
			g.d.method = method
			w := deliver(g.receiver, g.d)
			s.wantStatus(w, 405, provider+" with "+method)
			if w.Header().Get("Allow") != "POST" {
				t.Errorf("%s with %s: Allow is %q", provider, method, w.Header().Get("Allow"))
			}
		}
		g.d.method = "POST"
		s.wantStatus(deliver(g.receiver, g.d.withBody("")), 400, provider+" without a body")
	}
	s.wantStored(0)
}

// A body has a limit, whether or not its length is told before.
func TestABodyThatIsTooLargeIsRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	const limit = 512
	stripe, github, twilio := s.stripe(), s.github(), s.twilio()
	stripe.MostBody, github.MostBody, twilio.MostBody = limit, limit, limit
	body := func(n int) string { return `"` + strings.Repeat("x", n-2) + `"` }
	form := "Body=" + strings.Repeat("x", limit)
	for name, g := range map[string]goodDelivery{
		"stripe": {receiver: stripe, d: fromStripe(stripeSecret, body(limit+1), time.Now())},
		"github": {receiver: github, d: fromGitHub(githubSecret, body(limit+1), "guid")},
		"twilio": {receiver: twilio, d: fromTwilio(twilioSecret, "", form, twilioURL+"Body"+strings.Repeat("x", limit), "token")},
	} {
		s.wantStatus(deliver(g.receiver, g.d), 413, name)
		chunked := g.d.request()
		chunked.ContentLength = -1
		w := httptest.NewRecorder()
		g.receiver.ServeHTTP(w, chunked)
		s.wantStatus(w, 413, name+", of unknown length")
	}
	s.wantStored(0)
	s.wantStatus(deliver(github, fromGitHub(githubSecret, body(limit), "guid")), 200, "one of the limit's size")
	s.wantStored(1)
}

// By default a body of a mebibyte is taken.
func TestTheDefaultLimitOfABody(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	body := strings.Repeat("x", webhook.DefaultMostBody)
	s.wantStatus(deliver(s.github(), fromGitHub(githubSecret, body+"x", "guid")), 413, "more than the default")
	s.wantStatus(deliver(s.github(), fromGitHub(githubSecret, body, "guid")), 200, "the default")
}

// The server's timeouts end a body that does not come.
func TestABodyThatDoesNotCome(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	server := httptest.NewUnstartedServer(s.github())
	server.Config.ReadHeaderTimeout, server.Config.ReadTimeout = time.Minute, 50*time.Millisecond
	server.Start()
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	must(t, err)
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	d := fromGitHub(githubSecret, `{}`, "guid")
	fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n")
	must(t, d.header.Write(conn))
	fmt.Fprint(conn, "\r\n{")
	answer, err := io.ReadAll(conn)
	must(t, err)
	if !strings.HasPrefix(string(answer), "HTTP/1.1 408 ") {
		t.Errorf("answered %.200q", answer)
	}
	s.wantStored(0)
}

// A signature is good for as long as the replay window, and no longer, though it is right
// and its event was never seen.
func TestAReplayOutsideOfTheWindowIsRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	receiver := s.stripe()
	ago := func(d time.Duration, id string) delivery {
		return fromStripe(stripeSecret, stripeEvent(id, 1), time.Now().Add(-d))
	}
	s.wantStatus(deliver(receiver, ago(webhook.DefaultReplayWindow+2*time.Second, "evt_old")), 403, "too old")
	s.wantStored(0)
	s.wantStatus(deliver(receiver, ago(webhook.DefaultReplayWindow-time.Minute, "evt_1")), 200, "young enough")
	s.wantStatus(deliver(receiver, ago(webhook.DefaultReplayWindow-time.Minute, "evt_1")), 200, "replayed within the window")
	s.wantStored(1)
	strict := s.stripe()
	strict.ReplayWindow = 30 * time.Second
	s.wantStatus(deliver(strict, ago(32*time.Second, "evt_2")), 403, "too old for a window of one's own")
	s.wantStored(1)
}

// GitHub and Twilio sign no time: their replays are known by their claims, and with
// BySigned whatever their headers say.
func TestAReplayUnderAnotherIdIsRecognisedByWhatIsSigned(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	github, twilio := s.github(), s.twilio()
	github.Key, twilio.Key = webhook.BySigned, webhook.BySigned
	for _, guid := range []string{"guid-1", "guid-2"} {
		s.wantStatus(deliver(github, fromGitHub(githubSecret, `{"a": 1}`, guid)), 200, guid)
		s.wantStatus(deliver(twilio, fromTwilio(twilioSecret, "", smsBody, smsSigned, guid)), 200, guid)
	}
	// The same parameters in another order, and cut elsewhere, as Twilio's scheme allows.
	for _, body := range []string{"To=%2B15551234567&MessageStatus=delivered&MessageSid=SM1", "MessageSidSM1MessageStatus=deliveredTo%2B15551234567"} {
		s.wantStatus(deliver(twilio, fromTwilio(twilioSecret, "", body, smsSigned, "")), 200, body)
	}
	s.wantStored(2)
}

// While a secret is replaced the old and the new one are good, and no third.
func TestSecretsAreReplacedWithoutAGap(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	stripe, github, twilio := s.stripe(), s.github(), s.twilio()
	stripe.Secrets, github.Secrets, twilio.Secrets = []string{"new", "old"}, []string{"new", "old"}, []string{"new", "old"}
	for secret, want := range map[string]int{"new": 200, "old": 200, "older": 403} {
		s.wantStatus(deliver(stripe, fromStripe(secret, stripeEvent("evt_"+secret, 1), time.Now())), want, "stripe "+secret)
		s.wantStatus(deliver(github, fromGitHub(secret, `{}`, secret)), want, "github "+secret)
		s.wantStatus(deliver(twilio, fromTwilio(secret, "", smsBody, smsSigned, secret)), want, "twilio "+secret)
	}
	s.wantStored(6)
	s.wantStatus(deliver(github, fromGitHub("old", `{}`, "new")), 200, "a redelivery that is signed with the other one")
	s.wantStored(6)
}
