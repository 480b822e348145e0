package webhook

import (
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/metadata"
	"github.com/oncemill/oncemill/outbox"
)

// Defaults.
const (
	DefaultMostBody = 1 << 20         // bytes
	DefaultTimeout  = 8 * time.Second // GitHub waits for 10 seconds, Twilio for 15
)

// settings are the fields that all receivers have.
type settings struct {
	provider   string // "stripe"
	name       string // "Stripe", in errors
	inbox      *oncemill.Inbox
	topic      string
	secrets    []string
	consumer   string
	mostBody   int64
	timeout    time.Duration
	outbox     *outbox.Publisher
	logger     *slog.Logger
	redelivery time.Duration // for so long the provider delivers an event again
}

// validate says which field is wrong, and what to do about it.
func (s *settings) validate() error {
	switch {
	case s.inbox == nil:
		return s.wrong("Inbox", "is nil: set it to your *oncemill.Inbox")
	case s.topic == "":
		return s.wrong("Topic", "is empty: set it to where events are published, a NATS subject or a Kafka topic")
	case !metadata.IsText(s.topic):
		return s.wrong("Topic", fmt.Sprintf("is %.80q: must be UTF-8 without NUL", s.topic))
	case s.mostBody < 0:
		return s.wrong("MostBody", fmt.Sprintf("is %d: must not be negative, 0 means %d", s.mostBody, DefaultMostBody))
	case s.timeout < 0:
		return s.wrong("Timeout", fmt.Sprintf("is %v: must not be negative, 0 means %v", s.timeout, DefaultTimeout))
	}
	return s.validateSecrets()
}

// validateSecrets refuses secrets with which anybody could sign, and what is left of
// reading one from a file. No secret is in the error.
func (s *settings) validateSecrets() error {
	if len(s.secrets) == 0 {
		return s.wrong("Secrets", "is empty: set it to what "+s.name+" signs with; without, anybody could send events")
	}
	for i, secret := range s.secrets {
		switch {
		case secret == "":
			return s.wrong(fmt.Sprintf("Secrets[%d]", i), "is empty: anybody could sign with it; leave it out")
		case strings.TrimSpace(secret) != secret:
			return s.wrong(fmt.Sprintf("Secrets[%d]", i), "begins or ends with white space: trim it, a file often has a line break at its end")
		}
	}
	return nil
}

func (s *settings) wrong(field, what string) error {
	return fmt.Errorf("webhook: %s.%s %s", s.name, field, what)
}

// claims returns in whose name events are claimed.
func (s *settings) claims() (c *oncemill.Consumer, err error) {
	name := s.consumer
	if name == "" {
		name = "webhook/" + s.provider
	}
	defer func() { // of a wrong Inbox or name; here is where it is set up
		if unfit := recover(); unfit != nil {
			c, err = nil, s.wrong("Inbox or Consumer", fmt.Sprintf("is wrong: %v", unfit))
		}
	}()
	return s.inbox.Consumer(name), nil
}

// receiver returns what serves requests, with defaults in place.
func (s *settings) receiver(logger *slog.Logger) (*receiver, error) {
	if err := s.validate(); err != nil {
		return nil, err
	}
	consumer, err := s.claims()
	if err != nil {
		return nil, err
	}
	if kept := s.inbox.Retention; kept < s.redelivery {
		return nil, s.wrong("Inbox", fmt.Sprintf("keeps claims for %v (Inbox.Retention): must be at least %v, for which %s delivers an event again", kept, s.redelivery, s.name))
	}
	r := &receiver{
		provider: s.provider, consumer: consumer, topic: s.topic,
		mostBody: s.mostBody, timeout: s.timeout, outbox: s.outbox, logger: logger,
	}
	if r.mostBody == 0 {
		r.mostBody = DefaultMostBody
	}
	if r.timeout == 0 {
		r.timeout = DefaultTimeout
	}
	if r.outbox == nil {
		r.outbox = &outbox.Publisher{Schema: s.inbox.Schema, Notify: s.inbox.DB, Logger: logger}
	}
	return r, nil
}
