package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/consumers"
	"github.com/oncemill/oncemill/consumers/kafka"
	"github.com/oncemill/oncemill/middleware"
)

// handle has a consumer handle the topic as a group, until that has committed
// everything. Every fifth run of the handler fails.
func (s *site) handle(group string, once middleware.Once) {
	s.t.Helper()
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	must(s.t, err)
	once.Inbox = &oncemill.Inbox{DB: s.db}
	must(s.t, consumers.Stack{Once: once}.Apply(within(s.t), router))
	var runs atomic.Int32
	subscriber := s.subscriber(group)
	router.AddConsumerHandler(group, s.topic, subscriber, func(msg *message.Message) error {
		d, _ := kafka.FromContext(msg.Context())
		tx, _ := oncemill.TxFromContext(msg.Context())
		_, err := tx.ExecContext(msg.Context(), `INSERT INTO effects (handler, partition, "offset") VALUES ($1, $2, $3)`, once.Consumer, d.Partition, d.Offset)
		if runs.Add(1)%5 == 0 {
			err = errors.Join(err, errWanted)
		}
		return err
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- router.Run(ctx) }()
	s.consumed(subscriber.Group, s.topic)
	cancel()
	must(s.t, <-ended)
}

// Producers that know nothing of Watermill send no UUID. Their messages, tombstones
// among them, have their effects once, also when another group reads all of the
// topic again in the name of the same consumer.
func TestKafkaForeignProducers(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2)
	const n = 40
	for i := range n {
		r := &kgo.Record{Key: fmt.Append(nil, "key\x00\xff", i), Value: []byte("v"), Headers: []kgo.RecordHeader{{Key: "event-id", Value: fmt.Append(nil, i)}}}
		if i%4 == 0 {
			r.Value = nil
		}
		s.store(r)
	}
	for name, key := range map[string]middleware.KeyFunc{
		"position": middleware.ByPosition, "header": middleware.ByMetadata("event-id"), "record-key": kafka.ByRecordKey,
	} {
		once := middleware.Once{Consumer: name, Key: key}
		s.handle("first-"+name, once)
		s.handle("again-"+name, once)
		for what, query := range map[string]string{
			"effects":  `SELECT count(*) FROM effects WHERE handler = $1`,
			"messages": `SELECT count(DISTINCT (partition, "offset")) FROM effects WHERE handler = $1`,
			"claims":   `SELECT count(*) FROM oncemill.claims WHERE consumer = $1 AND outcome = 'settled'`,
		} {
			if got := s.count(query, name); got != n {
				t.Errorf("by %s: %d %s, want %d", name, got, what, n)
			}
		}
	}
}

// A message without a key is a dead letter at once, and holds up nobody.
func TestKafkaMessagesWithoutAKeyAreDeadLetters(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1)
	s.order(2)
	s.publish(100, 103) // without a UUID
	s.order(2)
	s.handle("g", middleware.Once{Consumer: "g"})
	if got := s.count(`SELECT count(*) FROM effects`); got != 4 {
		t.Errorf("%d effects, want 4", got)
	}
	if got := s.count(`SELECT count(DISTINCT metadata->>$1) FROM oncemill.outbox WHERE topic = 'dead-letter'`, consumers.DeadOffset); got != 3 {
		t.Errorf("%d dead letters, want 3", got)
	}
}
