package oncemill

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/oncemill/oncemill/internal/metadata"
)

// ParkedMessage is a message that is kept beside its claim while that is in doubt.
type ParkedMessage struct {
	Topic       string            `json:"topic"` // to which it goes back. Required
	UUID        string            `json:"uuid"`
	Metadata    map[string]string `json:"metadata"`
	OrderingKey []byte            `json:"ordering_key"` // nil: none
	Payload     []byte            `json:"payload"`      // nil: none, which an empty one is not
}

func (m *ParkedMessage) check() error {
	switch {
	case m.Topic == "":
		return errors.New("ParkedMessage.Topic is empty: say to which topic the message is to go back")
	case !metadata.IsText(m.Topic):
		return fmt.Errorf("ParkedMessage.Topic is %q: must be UTF-8 without NUL", m.Topic)
	}
	return nil
}

const parkSQL = `
INSERT INTO {schema}.parked (consumer, key, topic, uuid, metadata, ordering_key, payload)
VALUES ($1, $2, $3, $4, $5::text::jsonb, $6, $7)
ON CONFLICT (consumer, key) DO NOTHING
RETURNING 1`

// park stores a message, unless there is one already: another delivery of it, or
// another message about the same effect.
func (g *guardTx) park(m *ParkedMessage) (parked bool, err error) {
	encoded, err := metadata.Encode(m.Metadata)
	if err != nil {
		return false, fmt.Errorf("metadata: %w", err)
	}
	uuid := m.UUID
	if !metadata.IsText(uuid) {
		uuid = strconv.Quote(uuid)
	}
	return g.happened(parkSQL, g.d.consumer, g.d.stored, m.Topic, uuid, encoded, m.OrderingKey, m.Payload)
}
