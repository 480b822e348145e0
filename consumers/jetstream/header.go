package jetstream

import (
	"fmt"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"

	"github.com/oncemill/oncemill/internal/multivalue"
	"github.com/oncemill/oncemill/outbox"
)

// UUIDHeader is the header that carries a Watermill message's UUID. It is the
// one that watermill-nats' NATSMarshaler uses, so that either side reads what
// the other has published.
const UUIDHeader = "_watermill_message_uuid"

// serverHeaders is how the names of headers begin that mean something to the
// server.
const serverHeaders = "Nats-"

// decode makes a message of what the broker delivered. Headers that nats.go
// could not read are nil: the message is delivered without them.
func decode(raw *nats.Msg) *message.Message {
	uuid := raw.Header.Get(UUIDHeader)
	if uuid == "" {
		uuid = raw.Header.Get(nats.MsgIdHdr)
	}
	msg := message.NewMessage(uuid, raw.Data)
	for name, values := range raw.Header {
		if name != UUIDHeader && len(values) > 0 {
			msg.Metadata[name] = values[0]
		}
	}
	taken := func(name string) bool { _, ok := raw.Header[name]; return ok }
	for name, values := range raw.Header {
		if name == UUIDHeader {
			continue
		}
		multivalue.Spread(msg.Metadata, name, values[min(1, len(values)):], taken)
	}
	return msg
}

// encode makes a message for the broker. An error wraps outbox.ErrRefused: the
// message cannot be sent as it is.
//
// Metadata that begins with "Nats-" are only sent if control is set. A received
// message carries those that it was published with, and a copy that repeats its
// Nats-Msg-Id would be dropped as a duplicate, one that repeats its Nats-Rollup
// would delete what is in the stream. The ordering key is not sent: JetStream has
// no use for it, and it may hold bytes that no header can carry.
func encode(topic, uuid string, metadata message.Metadata, payload []byte, control bool) (*nats.Msg, error) {
	if err := checkSubject(topic, false); err != nil {
		return nil, fmt.Errorf("%w: %w", outbox.ErrRefused, err)
	}
	header := make(nats.Header, len(metadata)+2)
	for name, values := range multivalue.Headers(metadata) {
		switch {
		case name == outbox.OrderingKeyMetadata:
		case !control && strings.HasPrefix(name, serverHeaders):
		default:
			header[name] = values
		}
	}
	if uuid != "" {
		if trimmed(uuid) {
			return nil, fmt.Errorf("%w: the UUID %q has white space around it, which a NATS header loses: the message would arrive under the UUID of another one; mend it", outbox.ErrRefused, uuid)
		}
		header[UUIDHeader] = []string{uuid}
	}
	if err := checkHeader(header); err != nil {
		return nil, fmt.Errorf("%w: %w", outbox.ErrRefused, err)
	}
	return &nats.Msg{Subject: topic, Header: header, Data: payload}, nil
}

// checkHeader finds what nats.go refuses without saying where, or changes
// without saying so.
func checkHeader(header nats.Header) error {
	for name, values := range header {
		if !validHeaderName(name) {
			return fmt.Errorf("metadata key %q cannot be the name of a NATS header: use letters, digits, - and _", name)
		}
		for _, value := range values {
			if strings.ContainsAny(value, "\r\n\x00") {
				return fmt.Errorf("the value of metadata %q contains a line break or a NUL, which a NATS header cannot carry: encode it, for example with base64", name)
			}
		}
	}
	return nil
}

// trimmed reports whether nats.go takes white space from a value. For metadata that does
// not matter; of two messages with UUIDs that become the same, one would be a duplicate.
func trimmed(value string) bool { return strings.Trim(value, " \t") != value }

// validHeaderName allows what nats.go allows.
func validHeaderName(name string) bool {
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c >= 0x7f || strings.IndexByte("\"()/,:;<=>?@[\\]{}", c) >= 0 {
			return false
		}
	}
	return name != ""
}

// size is what the broker's max_payload counts.
func size(msg *nats.Msg) int64 {
	return int64(msg.Size() - len(msg.Subject) - len(msg.Reply))
}

// checkSize compares a message with the limits that are known beforehand.
// limit is the server's max_payload.
func checkSize(msg *nats.Msg, limit int64) error {
	if n := size(msg); limit > 0 && n > limit {
		return fmt.Errorf("%w: %d bytes of payload and headers are more than the server's max_payload of %d", outbox.ErrRefused, n, limit)
	}
	return nil
}
