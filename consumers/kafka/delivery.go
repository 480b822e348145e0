package kafka

import (
	"context"
	"encoding/hex"
	"fmt"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oncemill/oncemill"
)

// A Delivery is what Kafka says about one delivery of a message, beside what
// Watermill's message has room for.
type Delivery struct {
	Topic     string
	TopicID   [16]byte // another one if the topic is deleted and made again; zeros where the brokers have none (before Kafka 3.1)
	Partition int32
	Offset    int64
	Key       []byte             // the record's key, nil without one; read only
	Headers   []kgo.RecordHeader // as they came; read only
	Time      time.Time          // the record's timestamp; zero without one
	Attempt   uint64             // how often this process has delivered the message since it has the partition, from 1
}

type contextKey struct{}

// FromContext returns the Delivery that a message's context carries. ok is false
// for a message that did not come from a Subscriber.
func FromContext(ctx context.Context) (d Delivery, ok bool) {
	p, ok := ctx.Value(contextKey{}).(*Delivery)
	if !ok {
		return Delivery{}, false
	}
	return *p, true
}

// ByRecordKey is a middleware.KeyFunc: the record's key. It fits topics in which
// a key comes once, not those in which it names a thing that changes.
func ByRecordKey(msg *message.Message) (string, error) {
	d, ok := FromContext(msg.Context())
	switch {
	case !ok:
		return "", fmt.Errorf("%w: message %q does not come from a kafka.Subscriber", oncemill.ErrNoKey, msg.UUID)
	case len(d.Key) == 0:
		return "", fmt.Errorf("%w: the record at offset %d of partition %d of topic %q has no key; have the producer set it, or use another KeyFunc", oncemill.ErrNoKey, d.Offset, d.Partition, d.Topic)
	}
	return string(d.Key), nil
}

func deliveryOf(e *entry) *Delivery {
	r := e.record
	d := &Delivery{
		Topic:     r.Topic,
		TopicID:   e.p.topicID,
		Partition: r.Partition,
		Offset:    r.Offset,
		Key:       r.Key,
		Headers:   r.Headers,
		Attempt:   e.tries + 1,
	}
	// Records from before Kafka 0.10 have none, and some producers send none.
	if r.Attrs.TimestampType() >= 0 && r.Timestamp.UnixMilli() > 0 {
		d.Time = r.Timestamp
	}
	return d
}

// position tells the message from all others, also of a topic that had the same
// name before. It is empty where the brokers do not tell topics apart.
func (d *Delivery) position() string {
	if d.TopicID == [16]byte{} {
		return ""
	}
	return fmt.Sprintf("kafka:%s:%d:%d", hex.EncodeToString(d.TopicID[:]), d.Partition, d.Offset)
}

// place is for people. consumers.DeadPartition and DeadOffset are made of it.
func (d *Delivery) place() map[string]string {
	return map[string]string{
		"partition": strconv.Itoa(int(d.Partition)),
		"offset":    strconv.FormatInt(d.Offset, 10),
	}
}
