package jetstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/outbox"
)

const (
	// maxUnconfirmed and maxUnconfirmedBytes bound what of a batch is on its way
	// to the server, which refuses more than it can queue.
	maxUnconfirmed      = 4000
	maxUnconfirmedBytes = 32 << 20
)

// A Sink lets an outbox.Relay publish to JetStream. It publishes a whole batch at
// once and then waits for the acknowledgements.
//
// Each message is sent with the row's DedupID as its Nats-Msg-Id, so that a row
// which is published twice within the stream's duplicate window is stored once.
// Since that is not the message's UUID, the same message may go to several
// subjects of a stream.
//
// A Sink can be used from many goroutines. It must not be copied.
type Sink struct {
	// Conn is the connection. Required.
	Conn *nats.Conn

	// ServerHeaders has metadata sent that begin with "Nats-": see
	// Publisher.ServerHeaders. Nats-Msg-Id is always the row's DedupID.
	ServerHeaders bool

	// APIPrefix is that of the JetStream API; see Subscriber.APIPrefix.
	APIPrefix string

	// Logger hears, once in a process for each stream, that what it acknowledges can be
	// lost: it has one replica, or is in memory. The Sink looks when a stream has
	// acknowledged for the first time. nil means slog.Default().
	Logger *slog.Logger

	known sync.Map // streams that were looked at, by name
}

var _ outbox.Sink = (*Sink)(nil)

// PublishBatch publishes rows and returns one error for each, nil for those that
// a stream has acknowledged:
//
//   - outbox.ErrRefused: the row is larger than the server or the stream takes,
//     its topic is no subject, or a header cannot carry its metadata or UUID;
//   - outbox.ErrUnavailable: not connected, no acknowledgement before ctx ended,
//     or the stream is there but has no leader;
//   - another error: no stream captures the subject, the stream is full.
func (s *Sink) PublishBatch(ctx context.Context, rows []outbox.Row) []error {
	errs := make([]error, len(rows))
	b, err := s.begin(rows, errs)
	if err != nil {
		for i := range errs {
			errs[i] = fmt.Errorf("oncemill: jetstream: %w: %w", outbox.ErrUnavailable, err)
		}
		return errs
	}
	defer b.end()
	for i := range rows {
		if err = b.publish(ctx, i); err != nil {
			break
		}
	}
	for err == nil && b.waiting > 0 {
		err = b.receive(ctx)
	}
	b.abandon(err)
	s.explain(ctx, b)
	s.lookOnce(ctx, b.streams)
	for i, err := range errs {
		if err != nil {
			errs[i] = fmt.Errorf("oncemill: jetstream: outbox row %d to %.200q: %w", rows[i].ID, rows[i].Topic, err)
		}
	}
	return errs
}

// explain finds out why nobody received a row: there may be no stream, or a
// stream without a leader, which is not the row's fault.
func (s *Sink) explain(ctx context.Context, b *batch) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	why := make(map[string]error)
	for i, err := range b.errs {
		if err != nats.ErrNoResponders {
			continue
		}
		topic := b.rows[i].Topic
		if why[topic] == nil {
			why[topic] = s.unanswered(ctx, topic)
		}
		b.errs[i] = why[topic]
	}
}

func (s *Sink) unanswered(ctx context.Context, topic string) error {
	set := settings{conn: s.Conn}
	if err := set.setAPI(s.APIPrefix); err != nil {
		return err
	}
	_, err := set.js.StreamNameBySubject(ctx, topic)
	switch {
	case errors.Is(err, natsjs.ErrStreamNotFound):
		return noStream(topic)
	case err != nil:
		return fmt.Errorf("%w: %w", outbox.ErrUnavailable, explained(err))
	}
	return fmt.Errorf("%w: the stream does not answer", outbox.ErrUnavailable)
}
