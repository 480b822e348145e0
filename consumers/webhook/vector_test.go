package webhook_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stripe/stripe-go/v85/webhook"

	"github.com/oncemill/oncemill"
)

// https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries
func TestGitHubsOwnVector(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	d := post("/", "Hello, World!", "X-GitHub-Event", "ping", "X-GitHub-Delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958",
		"X-Hub-Signature-256", "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17")
	s.wantStatus(deliver(s.github(), d), 200, "the vector")
	if got := s.only(); got.payload != "Hello, World!" {
		t.Errorf("stored %+v", got)
	}
}

// The vectors of Twilio's own libraries, with the auth token 12345.
func TestTwiliosOwnVectors(t *testing.T) {
	t.Parallel()
	const (
		form     = "CallSid=CA1234567890ABCDE&Caller=%2B14158675309&Digits=1234&From=%2B14158675309&To=%2B18005551212"
		repeated = "Sid=CA123&SidAccount=AC123&Digits=5678&Digits=1234&Digits=1234"
		object   = `{"property": "value", "boolean": true}`
		hash     = "bodySHA256=0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620"
		https    = "https://mycompany.com/myapp.php"
	)
	for name, v := range map[string]struct{ url, query, body, signature string }{
		"a form":                             {https, "?foo=1&bar=2", form, "RSOYDt4T1cUTdK1PDd93/VVr8B8="},
		"several values of a parameter":      {https, "?foo=1&bar=2", repeated, "IK+Dwps556ElfBT0I3Rgjkr1wJU="},
		"signed without the port of the URL": {"https://mycompany.com:1234/myapp.php", "?foo=1&bar=2", form, "RSOYDt4T1cUTdK1PDd93/VVr8B8="},
		"signed with the port of HTTPS":      {https, "?foo=1&bar=2", form, "kvajT1Ptam85bY51eRf/AJRuM3w="},
		"signed with the port of HTTP":       {"http://mycompany.com/myapp.php", "?foo=1&bar=2", form, "0ZXoZLH/DfblKGATFgpif+LLRf4="},
		"signed with the port of the URL":    {"http://mycompany.com:1234/myapp.php", "?foo=1&bar=2", form, "Zmvh+3yNM1Phv2jhDCwEM3q5ebU="},
		"JSON":                               {https, "?foo=1&bar=2&" + hash, object, "a9nBmqA0ju/hNViExpshrM61xv4="},
		"JSON and no other parameters":       {https, "?" + hash, object, "y77kIzt2vzLz71DgmJGsen2scGs="},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			receiver := s.twilio()
			receiver.URL = v.url
			d := post("/behind/a/proxy"+v.query, v.body, "Content-Type", "application/x-www-form-urlencoded; charset=UTF-8", "X-Twilio-Signature", v.signature)
			if v.body == object {
				d.header.Set("Content-Type", "application/json")
			}
			s.wantStatus(deliver(receiver, d.with("X-Twilio-Signature", "RSOYDt4T1cUTdK1PDd93/VVr8B9=")), 400, "no base64")
			s.wantStatus(deliver(receiver, d.with("X-Twilio-Signature", "RSOYDt4T1cUTdK1PDd93/VVr8BA=")), 403, "another signature")
			s.wantStatus(deliver(receiver, d.withBody(strings.Replace(v.body, "1", "2", 1)+" ")), 403, "another body")
			s.wantStored(0)
			s.wantStatus(deliver(receiver, d), 200, "the vector")
			if got := s.only(); got.payload != v.body || "?"+got.metadata["webhook-query"] != v.query {
				t.Errorf("stored %+v", got)
			}
		})
	}
}

// Stripe's signature by hand, and by Stripe's library. The first is from 2017.
func TestStripesVectors(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.inbox.Retention = 100 * 365 * 24 * time.Hour
	receiver := s.stripe()
	receiver.Secrets, receiver.ReplayWindow = []string{"whsec_vector"}, s.inbox.Retention
	body := `{"id":"evt_1","object":"event","type":"invoice.paid","created":1492774577,"livemode":true}`
	d := post("/", body, "Stripe-Signature", "t=1492774577,v1=845ee2afbe5a813323f1b042c8413ef8e06fb430175dbc320f8fc564ee278530")
	s.wantStatus(deliver(receiver, d), 200, "signed by hand")

	library := webhook.GenerateTestSignedPayload(&webhook.UnsignedPayload{Payload: []byte(stripeEvent("evt_2", 1)), Secret: stripeSecret})
	s.inbox = &oncemill.Inbox{DB: s.db}
	s.wantStatus(deliver(s.stripe(), post("/", string(library.Payload), "Stripe-Signature", library.Header)), 200, "signed by the library")
	s.wantStored(2)
}
