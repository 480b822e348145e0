package webhook

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/outbox"
)

const (
	twilioSignature = "X-Twilio-Signature"
	twilioToken     = "I-Twilio-Idempotency-Token"
)

// Twilio receives what Twilio sends with POST: status callbacks, incoming messages,
// events. The answer to all of them is an empty TwiML document, which says that there
// is nothing to reply; a webhook that wants an answer, such as that of an incoming
// call, is not for this receiver.
//
// By default Twilio delivers again only if it gets no connection. Have it do so after
// 503 too, by a fragment of the URL that it is given: "#rc=5&rp=all".
//
// Twilio signs the URL and the parameters, or by the URL's bodySHA256 the body, but no
// time and no header. So a delivery that comes a second time is recognised for as long
// as its claim is kept, Inbox.Retention. Whoever has recorded one can send it later than
// that, or with another I-Twilio-Idempotency-Token; Key: webhook.BySigned recognises it
// by what is signed instead.
//
// Set the fields before the first request and leave them alone afterwards.
type Twilio struct {
	// Inbox holds the claims, and its DB the outbox. Required.
	Inbox *oncemill.Inbox

	// Topic is where events are published. Required.
	Topic string

	// Secrets are auth tokens of the account, or of the subaccount, that sends.
	// Required. With several, each of them is good: the primary one and the secondary.
	Secrets []string

	// URL is what Twilio was told to send to, such as
	// "https://example.com/hooks/twilio", as the outside sees it and without the query,
	// which is taken from each request. Required: it is signed, and behind a proxy a
	// request does not show it. A fragment with connection overrides may be part of it.
	URL string

	// Key tells an event's key. nil means the header I-Twilio-Idempotency-Token, or
	// where that is missing
	//
	//	MessageSid or SmsSid, MessageStatus or SmsStatus
	//	RecordingSid, RecordingStatus
	//	ConferenceSid, StatusCallbackEvent, SequenceNumber
	//	CallSid, CallStatus, SequenceNumber
	//
	// joined by colons, or where one of them is missing too, BySigned.
	Key KeyFunc

	// Consumer is the name in which events are claimed. It must not be the name of the
	// handler that works on them. "" means "webhook/twilio".
	Consumer string

	// MostBody is how many bytes the body of a request may have. 0 means 1 MiB, which
	// is about what brokers take by default.
	MostBody int64

	// Timeout is how long storing an event may take. 0 means 8 seconds; Twilio waits
	// for 15.
	Timeout time.Duration

	// Outbox writes the messages. nil means an outbox.Publisher in the Inbox's schema
	// that wakes relays through the Inbox's database.
	Outbox *outbox.Publisher

	// Logger hears of what is refused, and of what fails. nil means slog.Default().
	Logger *slog.Logger

	end endpoint
}

// Check reports what is wrong with the fields or with the database. Call it at start.
func (t *Twilio) Check(ctx context.Context) error { return t.setUp().check(ctx) }

// ServeHTTP stores the event of a request, and answers 200 when it is committed.
func (t *Twilio) ServeHTTP(w http.ResponseWriter, r *http.Request) { t.setUp().serve(w, r) }

func (t *Twilio) setUp() *endpoint {
	return t.end.setUp(t.settings(), t.finish)
}

func (t *Twilio) settings() settings {
	return settings{
		provider: "twilio", name: "Twilio", inbox: t.Inbox, topic: t.Topic, secrets: t.Secrets,
		consumer: t.Consumer, mostBody: t.MostBody, timeout: t.Timeout, outbox: t.Outbox, logger: t.Logger,
	}
}

func (t *Twilio) finish(rec *receiver) error {
	places, err := spellings(t.URL)
	if err != nil {
		return fmt.Errorf("webhook: Twilio.URL %w", err)
	}
	v := twilioVerifier{t.Secrets, places, t.Key}
	if v.key == nil {
		v.key = twilioKey
	}
	rec.needed, rec.single = []string{twilioSignature}, []string{"Content-Type", twilioToken}
	rec.verify, rec.accept = v.verify, acceptTwiML
	return nil
}

// acceptTwiML tells Twilio that there is nothing to reply. Plain text would be sent to
// whoever wrote the message.
func acceptTwiML(w http.ResponseWriter, _ bool) {
	w.Header().Set("Content-Type", "text/xml; charset=utf-8")
	_, _ = io.WriteString(w, `<?xml version="1.0" encoding="UTF-8"?><Response></Response>`)
}
