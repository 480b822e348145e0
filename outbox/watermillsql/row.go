package watermillsql

import (
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/internal/metadata"
	"github.com/oncemill/oncemill/internal/pgarray"
	"github.com/oncemill/oncemill/outbox"
	"github.com/oncemill/oncemill/schema"
)

var errInvalid = outbox.ErrInvalid

// deliverAfter is the metadata entry of messages that are to be sent later. They are not
// for the table outbox.
const deliverAfter = "oncemill-deliver-after"

// A row is a message as the columns of the outbox take it.
type row struct {
	topic       string
	uuid        string
	metadata    string // JSON
	orderingKey []byte // nil: NULL
	payload     []byte // nil: NULL
	parked      string // why it is parked, "" if it is not
}

func encode(topic string, msg *message.Message) (row, error) {
	switch {
	case topic == "":
		return row{}, fmt.Errorf("%w: the topic is empty (give Publish the NATS subject or Kafka topic)", errInvalid)
	case !metadata.IsText(topic):
		return row{}, fmt.Errorf("%w: the topic %q contains NUL or is not UTF-8 (mend the topic)", errInvalid, topic)
	case !metadata.IsText(msg.UUID):
		return row{}, fmt.Errorf("%w: the UUID %q contains NUL or is not UTF-8 (encode it, in hexadecimal for one)", errInvalid, msg.UUID)
	}
	if value, ok := msg.Metadata[deliverAfter]; ok {
		return row{}, fmt.Errorf("%w: metadata %s is %q: messages that are to be sent later cannot come this way (publish them with outbox.InTx, or remove the entry)", errInvalid, deliverAfter, value)
	}
	text, err := metadata.Encode(msg.Metadata, outbox.OrderingKeyMetadata)
	if err != nil {
		return row{}, fmt.Errorf("%w: metadata: %w", errInvalid, err)
	}
	r := row{topic: topic, uuid: msg.UUID, metadata: text, payload: msg.Payload}
	if key, ok := msg.Metadata[outbox.OrderingKeyMetadata]; ok {
		r.orderingKey = []byte(key) // not nil, even if it is empty
	}
	return r, nil
}

// insertQuery returns the one statement that writes rows in their order. unnest returns
// them so, and so the ids are given.
func insertQuery(schemaName string, rows []row) (query string, args []any) {
	var topic, uuid, meta, key, payload pgarray.Array
	for _, r := range rows {
		topic.AddText(r.topic)
		uuid.AddText(r.uuid)
		meta.AddText(r.metadata)
		key.AddBytes(r.orderingKey)
		payload.AddBytes(r.payload)
	}
	return `INSERT INTO ` + schema.Quote(schemaName) + `.outbox (topic, uuid, metadata, ordering_key, payload)
SELECT topic, uuid, metadata::jsonb, ordering_key::bytea, payload::bytea
FROM unnest($1::text::text[], $2::text::text[], $3::text::text[], $4::text::text[], $5::text::text[])
	AS new (topic, uuid, metadata, ordering_key, payload)`,
		[]any{topic.String(), uuid.String(), meta.String(), key.String(), payload.String()}
}

// drainQuery is insertQuery for rows of which some are parked.
func drainQuery(schemaName string, rows []row) (query string, args []any) {
	var parked pgarray.Array
	for _, r := range rows {
		parked.AddText(r.parked)
	}
	_, args = insertQuery(schemaName, rows)
	return `INSERT INTO ` + schema.Quote(schemaName) + `.outbox (topic, uuid, metadata, ordering_key, payload, attempts, parked_at, last_error)
SELECT topic, uuid, metadata::jsonb, ordering_key::bytea, payload::bytea,
	CASE WHEN parked <> '' THEN 1 ELSE 0 END, CASE WHEN parked <> '' THEN now() END, nullif(parked, '')
FROM unnest($1::text::text[], $2::text::text[], $3::text::text[], $4::text::text[], $5::text::text[], $6::text::text[])
	AS new (topic, uuid, metadata, ordering_key, payload, parked)`, append(args, parked.String())
}
