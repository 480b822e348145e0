package watermillsql

import (
	"errors"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"
)

// An envelope is what forwarder.Publisher puts messages in.
type envelope struct {
	DestinationTopic string            `json:"destination_topic"`
	UUID             string            `json:"uuid"`
	Payload          []byte            `json:"payload"`
	Metadata         map[string]string `json:"metadata"`
}

// unwrap returns the message in an envelope and its topic, by the rules of Watermill's
// forwarder.
func unwrap(payload []byte, marshaler forwarder.Marshaler) (topic string, msg *message.Message, err error) {
	var e envelope
	if err := marshaler.Unmarshal(payload, &e); err != nil {
		return "", nil, fmt.Errorf("%w: %w", ErrNoEnvelope, err)
	}
	if e.DestinationTopic == "" {
		return "", nil, fmt.Errorf("%w: it has no destination_topic", ErrNoEnvelope)
	}
	msg = message.NewMessage(e.UUID, e.Payload)
	msg.Metadata = e.Metadata
	return e.DestinationTopic, msg, nil
}

// ErrNoEnvelope means that a message is not in an envelope of Watermill's forwarder.
var ErrNoEnvelope = errors.New("the payload is not an envelope of Watermill's forwarder")
