package webhook

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/outbox"
)

const (
	// githubRedelivery: for three days a delivery can be sent again.
	githubRedelivery = 3 * 24 * time.Hour

	githubSignature = "X-Hub-Signature-256"
	githubDelivery  = "X-GitHub-Delivery"
	githubEvent     = "X-GitHub-Event"
)

// githubHeaders go into a message's metadata, where they are there.
var githubHeaders = []string{
	githubEvent, githubDelivery, "X-GitHub-Hook-ID",
	"X-GitHub-Hook-Installation-Target-ID", "X-GitHub-Hook-Installation-Target-Type",
}

// GitHub receives the events of a repository, an organization or an app. The key of an
// event is the header X-GitHub-Delivery, which a redelivery repeats.
//
// GitHub signs the body, and nothing else: no time, and no header. So a delivery that
// comes a second time is recognised for as long as its claim is kept, Inbox.Retention.
// Whoever has recorded one can send it later than that, or under another
// X-GitHub-Delivery; Key: webhook.BySigned recognises it by its body instead.
//
// Set the fields before the first request and leave them alone afterwards.
type GitHub struct {
	// Inbox holds the claims, and its DB the outbox. Required. Its Retention must be
	// at least three days, for which GitHub delivers an event again.
	Inbox *oncemill.Inbox

	// Topic is where events are published. Required.
	Topic string

	// Secrets are what the webhook was given as its secret. Required, and none of them
	// may be empty. With several, each of them is good: while one is replaced.
	Secrets []string

	// Key tells an event's key. nil means the header X-GitHub-Delivery; the same one
	// with another body is refused then.
	//
	// With BySigned, two events are one that say exactly the same, as two equal
	// workflow_dispatch or repository_dispatch do.
	Key KeyFunc

	// Consumer is the name in which events are claimed. It must not be the name of the
	// handler that works on them. "" means "webhook/github".
	Consumer string

	// MostBody is how many bytes the body of a request may have. 0 means 1 MiB, which
	// is about what brokers take by default; GitHub sends up to 25 MB.
	MostBody int64

	// Timeout is how long storing an event may take. 0 means 8 seconds; GitHub waits
	// for 10.
	Timeout time.Duration

	// Outbox writes the messages. nil means an outbox.Publisher in the Inbox's schema
	// that wakes relays through the Inbox's database.
	Outbox *outbox.Publisher

	// Logger hears of what is refused, and of what fails. nil means slog.Default().
	Logger *slog.Logger

	end endpoint
}

// Check reports what is wrong with the fields or with the database. Call it at start.
func (g *GitHub) Check(ctx context.Context) error { return g.setUp().check(ctx) }

// ServeHTTP stores the event of a request, and answers 200 when it is committed.
func (g *GitHub) ServeHTTP(w http.ResponseWriter, r *http.Request) { g.setUp().serve(w, r) }

func (g *GitHub) setUp() *endpoint {
	return g.end.setUp(g.settings(), g.finish)
}

func (g *GitHub) settings() settings {
	return settings{
		provider: "github", name: "GitHub", inbox: g.Inbox, topic: g.Topic, secrets: g.Secrets,
		consumer: g.Consumer, mostBody: g.MostBody, timeout: g.Timeout, outbox: g.Outbox, logger: g.Logger, redelivery: githubRedelivery,
	}
}

func (g *GitHub) finish(rec *receiver) error {
	v := githubVerifier{g.Secrets, g.Key}
	rec.needed = []string{githubSignature, githubDelivery, githubEvent}
	rec.single = append([]string{"Content-Type"}, githubHeaders...)
	rec.verify, rec.accept = v.verify, acceptPlainly
	return nil
}

type githubVerifier struct {
	secrets []string
	key     KeyFunc
}

func (v githubVerifier) verify(r *http.Request, body []byte) (event, error) {
	if err := v.checkSignature(r.Header.Get(githubSignature), body); err != nil {
		return event{}, err
	}
	digest := sha256.Sum256(body)
	e := event{key: r.Header.Get(githubDelivery), kind: text(r.Header.Get(githubEvent)), metadata: make(map[string]string)}
	for _, name := range githubHeaders {
		if value := r.Header.Get(name); value != "" {
			e.metadata[name] = text(value)
		}
	}
	if v.key == nil {
		// A redelivery is the same body again. Another one under the same key is
		// nothing that GitHub sends.
		e.fingerprint = digest[:]
		if err := checkKey(e.key); err != nil {
			return event{}, refuse(http.StatusBadRequest, "header %s %v", githubDelivery, err)
		}
		return e, nil
	}
	var err error
	e.key, err = keyOf(v.key, &Delivery{Provider: "github", Header: r.Header, Body: body, Signed: digest})
	return e, err
}

func (v githubVerifier) checkSignature(header string, body []byte) error {
	digits, ok := strings.CutPrefix(header, "sha256=")
	given, err := hex.DecodeString(digits)
	if !ok || err != nil || len(given) != sha256.Size {
		return refuse(http.StatusBadRequest, "header %s is not sha256= and 64 hexadecimal digits", githubSignature)
	}
	for _, secret := range v.secrets {
		mac := hmac.New(sha256.New, []byte(secret))
		mac.Write(body)
		if hmac.Equal(mac.Sum(nil), given) {
			return nil
		}
	}
	return refuse(http.StatusForbidden, "the signature is not that of this body")
}
