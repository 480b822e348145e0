package jetstream

import (
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/oncemill/oncemill/outbox"
)

// An encoder makes messages of a batch's rows. They are alike, so it uses one
// message for all, which is good until the next one is made.
type encoder struct {
	control bool  // send metadata that begin with "Nats-"
	limit   int64 // the server's max_payload

	msg    nats.Msg
	topic  string          // the last that was found good
	names  map[string]bool // of headers that were found good
	values []string        // of the headers, each a slice of one
}

// maxNames bounds how many names of headers are remembered.
const maxNames = 200

// encode returns what encode does, with the row's dedup id, and its size.
func (e *encoder) encode(row *outbox.Row) (*nats.Msg, int64, error) {
	ok := e.plain(row)
	if !ok {
		raw, err := encode(row.Topic, row.UUID, row.Metadata, row.Payload, e.control)
		if err != nil {
			return nil, 0, err
		}
		raw.Header[nats.MsgIdHdr] = []string{row.DedupID}
		e.msg = *raw
	}
	n := e.size()
	if n > e.limit {
		n = size(&e.msg)
		if err := checkSize(&e.msg, e.limit); err != nil {
			return nil, 0, err
		}
	}
	return &e.msg, n, nil
}

// plain encodes a row with which there is nothing special: the others are few.
func (e *encoder) plain(row *outbox.Row) bool {
	if row.Topic != e.topic || e.topic == "" {
		if checkSubject(row.Topic, false) != nil {
			return false
		}
		e.topic = row.Topic
	}
	if e.msg.Header == nil {
		e.msg.Header = make(nats.Header)
		e.names = make(map[string]bool)
	}
	clear(e.msg.Header)
	e.values = e.values[:0]
	for name, value := range row.Metadata {
		if name == outbox.OrderingKeyMetadata || !e.control && strings.HasPrefix(name, serverHeaders) {
			continue
		}
		// # is where a further value of a header may be: see package multivalue.
		if !e.goodName(name) || !goodValue(value) {
			return false
		}
		e.set(name, value)
	}
	if row.UUID != "" {
		if !goodValue(row.UUID) || trimmed(row.UUID) {
			return false
		}
		e.set(UUIDHeader, row.UUID)
	}
	e.set(nats.MsgIdHdr, row.DedupID)
	e.msg.Subject, e.msg.Data = row.Topic, row.Payload
	return true
}

func (e *encoder) set(name, value string) {
	e.values = append(e.values, value)
	n := len(e.values)
	e.msg.Header[name] = e.values[n-1 : n : n]
}

func (e *encoder) goodName(name string) bool {
	if e.names[name] {
		return true
	}
	if strings.Contains(name, "#") || !validHeaderName(name) {
		return false
	}
	if len(e.names) < maxNames {
		e.names[name] = true
	}
	return true
}

func goodValue(value string) bool {
	return strings.IndexByte(value, '\n') < 0 && strings.IndexByte(value, '\r') < 0 && strings.IndexByte(value, 0) < 0
}

// size returns about what the function of that name does, and never less.
func (e *encoder) size() int64 {
	n := len("NATS/1.0\r\n\r\n") + len(e.msg.Data)
	for name, values := range e.msg.Header {
		for _, value := range values {
			n += len(name) + len(value) + len(": \r\n")
		}
	}
	return int64(n)
}
