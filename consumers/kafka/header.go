package kafka

import (
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oncemill/oncemill/internal/multivalue"
	"github.com/oncemill/oncemill/outbox"
)

// UUIDHeader is the header that carries a Watermill message's UUID. It is the
// one that watermill-kafka's DefaultMarshaler uses, so that either side reads
// what the other has sent.
const UUIDHeader = "_watermill_message_uuid"

// decode makes a message of a record. The payload is nil for a tombstone, and a
// record's key becomes the metadata outbox.OrderingKeyMetadata.
func decode(r *kgo.Record) *message.Message {
	values := make(map[string][]string, len(r.Headers))
	for _, h := range r.Headers {
		values[h.Key] = append(values[h.Key], string(h.Value))
	}
	uuid := ""
	if own := values[UUIDHeader]; own != nil {
		uuid = own[len(own)-1]
		delete(values, UUIDHeader)
	}
	if keys := values[outbox.OrderingKeyMetadata]; keys != nil {
		values[outbox.OrderingKeyMetadata] = keys[:1] // a key has no further values
	}
	msg := message.NewMessage(uuid, r.Value)
	for name, all := range values {
		msg.Metadata[name] = all[0]
	}
	// Only once all first values are there is it known which names are free.
	taken := func(name string) bool { return values[name] != nil }
	for name, all := range values {
		multivalue.Spread(msg.Metadata, name, all[1:], taken)
	}
	if r.Key != nil {
		msg.Metadata[outbox.OrderingKeyMetadata] = string(r.Key)
	}
	return msg
}

// encode makes a record of a message. It has the key that is in its metadata, if
// one is there.
func encode(topic, uuid string, metadata message.Metadata, payload []byte) (*kgo.Record, error) {
	if err := checkTopic(topic); err != nil {
		return nil, fmt.Errorf("%w: %w", outbox.ErrRefused, err)
	}
	r := &kgo.Record{Topic: topic, Value: payload}
	if uuid != "" {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: UUIDHeader, Value: []byte(uuid)})
	}
	for name, values := range multivalue.Headers(metadata) {
		switch name {
		case outbox.OrderingKeyMetadata:
			r.Key = []byte(values[0])
		case UUIDHeader:
		default:
			for _, value := range values {
				r.Headers = append(r.Headers, kgo.RecordHeader{Key: name, Value: []byte(value)})
			}
		}
	}
	return r, nil
}
