package kafka

import (
	"context"
	"fmt"
	"log/slog"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oncemill/oncemill/outbox"
)

// A Sink lets an outbox.Relay publish to Kafka. It sends a whole batch at once
// and waits until all replicas that are in sync have each record. The producer is
// idempotent: what it repeats by itself is stored once.
//
// A row's ordering key is the record's key, so rows with the same key go to the
// same partition. The row's DedupID is in the header outbox.DedupMetadata: Kafka
// itself does not recognise a row that is published twice, as after the death of
// a relay; a consumer that claims does.
//
// A Sink can be used from many goroutines. Close it at the end. It must not be
// copied.
type Sink struct {
	// Client leads to the brokers: its options are taken over by a client that
	// the Sink makes for itself. It stays open when the Sink is closed. Required.
	Client *kgo.Client

	// Logger hears, once in a process for each topic, that what it acknowledges can be
	// lost: it has one replica, min.insync.replicas is 1, or unclean leaders are allowed.
	// The Sink looks when it sends to a topic for the first time. nil means
	// slog.Default().
	Logger *slog.Logger

	producer producer
}

var _ outbox.Sink = (*Sink)(nil)

// Check returns nil if the brokers can be reached and take the credentials, and
// if Client can be used. ctx bounds it.
func (s *Sink) Check(ctx context.Context) error {
	client, err := s.open()
	if err != nil {
		return fmt.Errorf("oncemill: kafka: %w", err)
	}
	if _, err := lookUp(ctx, client, []string{}); err != nil {
		return fmt.Errorf("oncemill: kafka: %w", err)
	}
	return nil
}

// PublishBatch publishes rows and returns one error for each, nil for those that
// all replicas have that are in sync:
//
//   - outbox.ErrRefused: the row is larger than the brokers take, its topic is no
//     name of a topic, or the topic wants a key;
//   - outbox.ErrUnavailable: the brokers cannot be reached, or there was no
//     acknowledgement before ctx ended;
//   - another error: there is no such topic, or this user may not write to it.
func (s *Sink) PublishBatch(ctx context.Context, rows []outbox.Row) []error {
	errs := make([]error, len(rows))
	client, err := s.open()
	if err != nil {
		for i := range errs {
			errs[i] = fmt.Errorf("oncemill: kafka: %w: %w", outbox.ErrUnavailable, err)
		}
		return errs
	}
	records := make([]*kgo.Record, len(rows))
	for i, row := range rows {
		r, err := encode(row.Topic, row.UUID, row.Metadata, row.Payload)
		if err != nil {
			errs[i] = err
			continue
		}
		r.Key = row.OrderingKey
		r.Headers = append(withoutDedupID(r.Headers), kgo.RecordHeader{Key: outbox.DedupMetadata, Value: []byte(row.DedupID)})
		records[i] = r
	}
	s.producer.send(ctx, client, records, errs)
	for i, err := range errs {
		if err != nil {
			errs[i] = fmt.Errorf("oncemill: kafka: outbox row %d to %.200q: %w", rows[i].ID, rows[i].Topic, err)
		}
	}
	return errs
}

func (s *Sink) open() (*kgo.Client, error) {
	logger := s.Logger
	if logger == nil {
		logger = slog.Default()
	}
	return s.producer.open("Sink", s.Client, logger)
}

// withoutDedupID takes out what a handler that passes its metadata on has left of
// another row's.
func withoutDedupID(headers []kgo.RecordHeader) []kgo.RecordHeader {
	return slices.DeleteFunc(headers, func(h kgo.RecordHeader) bool { return h.Key == outbox.DedupMetadata })
}

// Close closes the Sink's connections. What is being published fails. It leaves
// the user's client open.
func (s *Sink) Close() error { return s.producer.close() }
