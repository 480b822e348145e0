package outbox_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
)

func TestPublisherSink(t *testing.T) {
	t.Parallel()
	db := testenv.DB(t)
	publish(t, db, "refused", 1)
	publish(t, db, "failed", 1)
	publish(t, db, "good", 1)
	var got []*message.Message
	publisher := publisherFunc(func(topic string, msgs ...*message.Message) error {
		switch topic {
		case "refused":
			return outbox.ErrRefused
		case "failed":
			return errors.New("no")
		}
		got = append(got, msgs...)
		return nil
	})
	relay := start(t, &outbox.Relay{DB: db, Sink: outbox.PublisherSink{Publisher: publisher, DedupKey: "Nats-Msg-Id"}, PollInterval: time.Hour})
	if sum := relay.settled(t, 3); sum.Published != 1 || sum.Deferred != 1 || sum.Parked != 1 {
		t.Errorf("batches are %+v", sum)
	}
	if len(got) != 1 || got[0].UUID != "good-0" || string(got[0].Payload) != "good-0" ||
		len(got[0].Metadata.Get("Nats-Msg-Id")) != 36 || got[0].Metadata.Get(outbox.OriginMetadata) == "" {
		t.Errorf("published %+v", got)
	}
}

func TestPublisherSinkHandsOnOrderingKeysAndTombstones(t *testing.T) {
	t.Parallel()
	rows := []outbox.Row{
		{OrderingKey: []byte("\x00\xff"), Metadata: message.Metadata{"a": "b"}},
		{OrderingKey: []byte{}, Payload: []byte{}},
		{},
	}
	var got []*message.Message
	sink := outbox.PublisherSink{Publisher: publisherFunc(func(_ string, msgs ...*message.Message) error {
		got = append(got, msgs...)
		return nil
	})}
	if err := errors.Join(sink.PublishBatch(t.Context(), rows)...); err != nil {
		t.Fatal(err)
	}
	for i, row := range rows {
		key, ok := got[i].Metadata[outbox.OrderingKeyMetadata]
		if ok != (row.OrderingKey != nil) || key != string(row.OrderingKey) || (got[i].Payload == nil) != (row.Payload == nil) {
			t.Errorf("row %+v: message %+v", row, got[i])
		}
	}
	if len(rows[0].Metadata) != 1 {
		t.Errorf("the row's own metadata is changed: %v", rows[0].Metadata)
	}
}

// Rows that a slow publisher leaves no time for are not to blame.
func TestPublisherSinkStopsAtTheDeadline(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	sink := outbox.PublisherSink{Publisher: publisherFunc(func(string, ...*message.Message) error {
		cancel()
		return nil
	})}
	errs := sink.PublishBatch(ctx, make([]outbox.Row, 3))
	if len(errs) != 3 || errs[0] != nil || !errors.Is(errs[1], outbox.ErrUnavailable) || !errors.Is(errs[2], outbox.ErrUnavailable) {
		t.Errorf("errors are %v", errs)
	}
}

type publisherFunc func(topic string, msgs ...*message.Message) error

func (f publisherFunc) Publish(topic string, msgs ...*message.Message) error {
	return f(topic, msgs...)
}
func (f publisherFunc) Close() error { return nil }
