package middleware

import (
	"slices"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill"
	"github.com/oncemill/oncemill/internal/delivery"
	"github.com/oncemill/oncemill/outbox"
)

// parkable returns msg as it is stored beside a claim in doubt, from where it goes to
// the outbox if its effect turns out not to have happened.
func parkable(msg *message.Message) (*oncemill.ParkedMessage, error) {
	topic := topicOf(msg)
	if topic == "" {
		return nil, ErrNoParking
	}
	parked := &oncemill.ParkedMessage{
		Topic:    topic,
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
	return parked, nil
}

// topicOf returns where a message can be published again, "" if that is not known.
func topicOf(msg *message.Message) string {
	if info, _ := delivery.From(msg.Context()); info.Topic != "" {
		return info.Topic
	}
	topic := message.SubscribeTopicFromCtx(msg.Context())
	if slices.ContainsFunc(strings.Split(topic, "."), func(token string) bool { return token == "*" || token == ">" }) {
		return "" // a pattern of NATS
	}
	return topic
}
