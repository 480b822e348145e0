package jetstream

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/outbox"
)

// DefaultPublishTimeout is what the zero value of Publisher.Timeout means.
const DefaultPublishTimeout = 5 * time.Second

// A Publisher publishes to JetStream and waits until the stream has the message.
// It is a message.Publisher. A topic is a NATS subject that a stream captures.
//
// What a handler publishes in a transaction belongs into the outbox instead,
// from where a relay sends it with a Sink.
type Publisher struct {
	// Conn is the connection, which stays open when the Publisher is closed.
	// Required.
	Conn *nats.Conn

	// Timeout is how long to wait for the stream's acknowledgement of each
	// message; the message's context may end earlier. 0 means
	// DefaultPublishTimeout.
	Timeout time.Duration

	// MsgID tells the Nats-Msg-Id of a message, by which a stream recognises one
	// that is published twice within its duplicate window (2 minutes unless
	// configured). nil, or an empty result: the stream takes every message.
	//
	// A stream has one set of ids for all its subjects. With the bare UUID as the
	// id, a message published to three subjects of a stream would arrive once;
	// see TopicUUID.
	MsgID func(topic string, msg *message.Message) string

	// ServerHeaders has metadata sent that begin with "Nats-", such as Nats-TTL,
	// with which a producer gives orders to the server. Usually they are not: a
	// received message has those that it was published with, and a handler that
	// passes its metadata on does not mean to repeat them.
	ServerHeaders bool

	closed atomic.Bool
}

var _ message.Publisher = (*Publisher)(nil)

// TopicUUID is a Publisher.MsgID: the topic and the message's UUID, or nothing
// for a message without UUID.
func TopicUUID(topic string, msg *message.Message) string {
	if msg.UUID == "" {
		return ""
	}
	return topic + " " + msg.UUID
}

// Publish publishes messages one after another and returns with the first error.
// nil means that the stream has acknowledged all of them. An error names the
// topic and the message. Those that wrap outbox.ErrRefused will come again for
// the same message; after any other, the message may be stored nevertheless.
func (p *Publisher) Publish(topic string, messages ...*message.Message) error {
	switch {
	case p.Conn == nil:
		return errors.New("oncemill: jetstream: Publisher.Conn is nil: set it to a *nats.Conn")
	case p.Timeout < 0:
		return fmt.Errorf("oncemill: jetstream: Publisher.Timeout is %v: must be positive, or 0 for %v", p.Timeout, DefaultPublishTimeout)
	case p.closed.Load():
		return ErrClosed
	}
	js, err := natsjs.New(p.Conn)
	if err != nil {
		return fmt.Errorf("oncemill: jetstream: %w", err)
	}
	for _, msg := range messages {
		if err := p.publish(js, topic, msg); err != nil {
			return fmt.Errorf("oncemill: jetstream: publish message %q to %q: %w", msg.UUID, topic, err)
		}
	}
	return nil
}

func (p *Publisher) publish(js natsjs.JetStream, topic string, msg *message.Message) error {
	raw, err := encode(topic, msg.UUID, msg.Metadata, msg.Payload, p.ServerHeaders)
	if err != nil {
		return err
	}
	if p.MsgID != nil {
		if id := p.MsgID(topic, msg); id != "" {
			raw.Header[nats.MsgIdHdr] = []string{id}
		}
	}
	if err := checkHeader(raw.Header); err != nil {
		return fmt.Errorf("%w: %w", outbox.ErrRefused, err)
	}
	if err := checkSize(raw, p.Conn.MaxPayload()); err != nil {
		return err
	}
	timeout := p.Timeout
	if timeout == 0 {
		timeout = DefaultPublishTimeout
	}
	ctx, cancel := context.WithTimeout(msg.Context(), timeout)
	defer cancel()
	_, err = js.PublishMsg(ctx, raw)
	return publishError(raw, err)
}

// publishError says what an error of JetStream means for the message.
func publishError(raw *nats.Msg, err error) error {
	var api *natsjs.APIError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, natsjs.ErrNoStreamResponse), errors.Is(err, nats.ErrNoResponders):
		return noStream(raw.Subject)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		return fmt.Errorf("%w: no acknowledgement in time: %w", outbox.ErrUnavailable, err)
	case errors.As(err, &api):
		return answerError(raw, api)
	case errors.Is(err, nats.ErrMaxPayload), errors.Is(err, nats.ErrBadSubject), errors.Is(err, nats.ErrBadHeaderMsg), errors.Is(err, nats.ErrHeadersNotSupported):
		return fmt.Errorf("%w: %w", outbox.ErrRefused, err)
	case errors.Is(err, context.Canceled), errors.Is(err, natsjs.ErrInvalidJSAck):
		return err
	}
	return fmt.Errorf("%w: %w", outbox.ErrUnavailable, err)
}

// Codes of a stream's answers beyond those that nats.go names.
const (
	codeHeaderTooLarge natsjs.ErrorCode = 10097
	codeStoreFailed    natsjs.ErrorCode = 10077 // the stream is full and discards new messages
)

// answerError says what the stream's own word means.
func answerError(raw *nats.Msg, answer *natsjs.APIError) error {
	switch {
	case answer.ErrorCode == natsjs.JSErrCodeStreamMessageExceedsMaximum:
		return fmt.Errorf("%w: %d bytes of payload and headers are more than the stream's max_msg_size: %w", outbox.ErrRefused, size(raw), answer)
	case answer.ErrorCode == codeHeaderTooLarge:
		return fmt.Errorf("%w: the %d bytes of headers are more than a stream takes, 65535: %w", outbox.ErrRefused, size(raw)-int64(len(raw.Data)), answer)
	case answer.ErrorCode == codeStoreFailed:
		return fmt.Errorf("the stream did not store it: %w", answer)
	case answer.Code >= 500 || answer.Code == 429:
		return fmt.Errorf("%w: %w", outbox.ErrUnavailable, answer)
	}
	return answer
}

// Close makes further calls of Publish fail with ErrClosed. It leaves the
// connection open.
func (p *Publisher) Close() error {
	p.closed.Store(true)
	return nil
}
