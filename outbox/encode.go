package outbox

import (
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/internal/duetime"
	"github.com/oncemill/oncemill/internal/metadata"
)

// An encodedRow is a message as the table's columns take it.
type encodedRow struct {
	topic       string
	uuid        string
	metadata    string        // JSON
	orderingKey []byte        // nil: NULL
	payload     []byte        // nil: NULL
	due         *duetime.Time // nil: it is to be sent at once
}

func (r encodedRow) size() int {
	return len(r.uuid) + len(r.metadata) + len(r.orderingKey) + len(r.payload)
}

// encode checks the messages of one call and returns their rows.
func encode(topic string, msgs []*message.Message) ([]encodedRow, error) {
	if err := checkTopic(topic); err != nil {
		return nil, &Error{Topic: topic, Index: -1, Err: err}
	}
	rows := make([]encodedRow, len(msgs))
	for i, msg := range msgs {
		if msg == nil {
			return nil, &Error{Topic: topic, Index: i, Err: fmt.Errorf("%w: it is nil", ErrInvalid)}
		}
		row, err := encodeMessage(topic, msg)
		if err != nil {
			return nil, &Error{Topic: topic, UUID: msg.UUID, Index: i, Err: err}
		}
		rows[i] = row
	}
	return rows, nil
}

func checkTopic(topic string) error {
	switch {
	case topic == "":
		return fmt.Errorf("%w: the topic is empty (give Publish the NATS subject or Kafka topic)", ErrInvalid)
	case !metadata.IsText(topic):
		return fmt.Errorf("%w: the topic %q contains NUL or is not UTF-8 (mend the topic)", ErrInvalid, topic)
	}
	return nil
}

func encodeMessage(topic string, msg *message.Message) (encodedRow, error) {
	if !metadata.IsText(msg.UUID) {
		return encodedRow{}, fmt.Errorf("%w: the UUID %q contains NUL or is not UTF-8 (encode it, in hexadecimal for one)", ErrInvalid, msg.UUID)
	}
	meta, err := metadata.Encode(msg.Metadata, OrderingKeyMetadata, DeliverAfterMetadata)
	if err != nil {
		return encodedRow{}, fmt.Errorf("%w: metadata: %w", ErrInvalid, err)
	}
	row := encodedRow{topic: topic, uuid: msg.UUID, metadata: meta, payload: msg.Payload}
	if key, ok := msg.Metadata[OrderingKeyMetadata]; ok {
		row.orderingKey = []byte(key) // not nil, even if it is empty
	}
	if value, ok := msg.Metadata[DeliverAfterMetadata]; ok {
		if row.due, err = readDueTime(value); err != nil {
			return encodedRow{}, err
		}
	}
	return row, nil
}
