package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/stripe/stripe-go/v85/webhook"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/outbox"
)

const (
	// DefaultReplayWindow is how old a signature of Stripe's may be.
	DefaultReplayWindow = webhook.DefaultTolerance

	// stripeRedelivery: in live mode Stripe tries for three days.
	stripeRedelivery = 3 * 24 * time.Hour

	stripeHeader = "Stripe-Signature"
)

// Stripe receives the events of a Stripe account, snapshots and thin ones of any API
// version. An event's id ("evt_...") is its key.
//
// Set the fields before the first request and leave them alone afterwards.
type Stripe struct {
	// Inbox holds the claims, and its DB the outbox. Required. Its Retention must be
	// at least three days, for which Stripe delivers an event again.
	Inbox *oncemill.Inbox

	// Topic is where events are published. Required.
	Topic string

	// Secrets are the signing secrets of the endpoint ("whsec_..."). Required. With
	// several, each of them is good: while Stripe rolls one, for instance.
	Secrets []string

	// ReplayWindow is how old a signature may be. Stripe signs each delivery anew, so
	// that an older one is somebody's who has recorded it. 0 means 5 minutes. It must
	// not be longer than Inbox.Retention.
	ReplayWindow time.Duration

	// Consumer is the name in which events are claimed. It must not be the name of the
	// handler that works on them. "" means "webhook/stripe"; two endpoints that may
	// get the same event need two names if it is to be published for both.
	Consumer string

	// MostBody is how many bytes the body of a request may have. 0 means 1 MiB, which
	// is about what brokers take by default.
	MostBody int64

	// Timeout is how long storing an event may take. 0 means 8 seconds.
	Timeout time.Duration

	// Outbox writes the messages. nil means an outbox.Publisher in the Inbox's schema
	// that wakes relays through the Inbox's database.
	Outbox *outbox.Publisher

	// Logger hears of what is refused, and of what fails. nil means slog.Default().
	Logger *slog.Logger

	end endpoint
}

// Check reports what is wrong with the fields or with the database. Call it at start.
func (s *Stripe) Check(ctx context.Context) error { return s.setUp().check(ctx) }

// ServeHTTP stores the event of a request, and answers 200 when it is committed.
func (s *Stripe) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.setUp().serve(w, r) }

func (s *Stripe) setUp() *endpoint {
	return s.end.setUp(s.settings(), s.finish)
}

func (s *Stripe) settings() settings {
	return settings{
		provider: "stripe", name: "Stripe", inbox: s.Inbox, topic: s.Topic, secrets: s.Secrets,
		consumer: s.Consumer, mostBody: s.MostBody, timeout: s.Timeout, outbox: s.Outbox, logger: s.Logger, redelivery: stripeRedelivery,
	}
}

func (s *Stripe) finish(rec *receiver) error {
	if s.ReplayWindow < 0 || s.ReplayWindow > s.Inbox.Retention {
		return fmt.Errorf("webhook: Stripe.ReplayWindow is %v: must be positive and not longer than Inbox.Retention (%v), or 0 for %v", s.ReplayWindow, s.Inbox.Retention, DefaultReplayWindow)
	}
	for i, secret := range s.Secrets {
		if strings.HasPrefix(secret, "sk_") || strings.HasPrefix(secret, "rk_") || strings.HasPrefix(secret, "pk_") {
			return fmt.Errorf("webhook: Stripe.Secrets[%d] is an API key: set it to the endpoint's signing secret (whsec_...)", i)
		}
	}
	v := stripeVerifier{s.Secrets, s.ReplayWindow}
	if v.window == 0 {
		v.window = DefaultReplayWindow
	}
	rec.needed, rec.single = []string{stripeHeader}, []string{"Content-Type"}
	rec.verify, rec.accept = v.verify, acceptPlainly
	return nil
}

type stripeVerifier struct {
	secrets []string
	window  time.Duration
}

func (v stripeVerifier) verify(r *http.Request, body []byte) (event, error) {
	if err := v.checkSignature(r.Header.Get(stripeHeader), body); err != nil {
		return event{}, err
	}
	return readStripeEvent(body)
}

func (v stripeVerifier) checkSignature(header string, body []byte) error {
	var err error
	for _, secret := range v.secrets {
		// Not ConstructEvent: it takes no thin events, and reads what only a worker
		// needs.
		if err = webhook.ValidatePayloadWithTolerance(body, header, secret, v.window); err == nil {
			return nil
		}
	}
	switch {
	case errors.Is(err, webhook.ErrInvalidHeader):
		return refuse(http.StatusBadRequest, "header %s is not one of Stripe's", stripeHeader)
	case errors.Is(err, webhook.ErrTooOld):
		return refuse(http.StatusForbidden, "the signature is older than %v", v.window)
	}
	return refuse(http.StatusForbidden, "the signature is not that of this body")
}

// readStripeEvent reads what is needed of an event. Its other members differ from one
// API version to the next.
func readStripeEvent(body []byte) (event, error) {
	var members map[string]json.RawMessage // not a struct, which would take "ID" for "id"
	if json.Unmarshal(body, &members) != nil || members == nil {
		return event{}, refuse(http.StatusBadRequest, "the body is not a JSON object")
	}
	var id, kind, object string
	for name, into := range map[string]*string{"id": &id, "type": &kind, "object": &object} {
		if json.Unmarshal(members[name], into) != nil {
			return event{}, refuse(http.StatusBadRequest, "%s is missing in the event, or no text", name)
		}
	}
	if object != "event" && object != "v2.core.event" {
		return event{}, refuse(http.StatusBadRequest, "the body is not an event")
	}
	if !strings.HasPrefix(id, "evt_") {
		return event{}, refuse(http.StatusBadRequest, "id is not that of an event")
	}
	if err := checkKey(id); err != nil {
		return event{}, refuse(http.StatusBadRequest, "id %v", err)
	}
	// No fingerprint: pending_webhooks, for one, differs from one delivery to the next.
	return event{key: id, kind: text(kind), origin: stripeOrigin(members)}, nil
}

// stripeOrigin is when an event happened. The clocks of test mode may be set to any
// time.
func stripeOrigin(members map[string]json.RawMessage) time.Time {
	if string(members["livemode"]) == "false" {
		return time.Time{}
	}
	var seconds int64
	if json.Unmarshal(members["created"], &seconds) == nil && seconds > 0 {
		return time.Unix(seconds, 0)
	}
	var at time.Time // as thin events have it
	if json.Unmarshal(members["created"], &at) == nil {
		return at
	}
	return time.Time{}
}
