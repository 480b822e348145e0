package middleware

import (
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/outbox"
)

// parkable returns msg as it is stored beside a claim in doubt, from where it goes to
// the outbox if its effect turns out not to have happened.
func parkable(msg *message.Message) *oncemill.ParkedMessage {
	parked := &oncemill.ParkedMessage{
		Topic:    message.SubscribeTopicFromCtx(msg.Context()),
		UUID:     msg.UUID,
		Metadata: make(map[string]string, len(msg.Metadata)),
		Payload:  msg.Payload,
	}
	for key, value := range msg.Metadata {
		if key == outbox.OrderingKeyMetadata { // the outbox has a column for it
			parked.OrderingKey = []byte(value)
			continue
		}
		parked.Metadata[key] = value
	}
	return parked
}
