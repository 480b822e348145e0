package hostile

import (
	"fmt"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/oncemill/oncemill/internal/multivalue"
	"github.com/oncemill/oncemill/outbox"
)

// A Message is one that a producer sends, which knows nothing of Watermill or means ill.
type Message struct {
	Name    string
	UUID    string    // in the header _watermill_message_uuid; "": there is none
	Key     []byte    // of the Kafka record, and the ordering key in the outbox; nil: none
	Headers []Header  // in their order
	Payload []byte    // nil: a tombstone
	Time    time.Time // the Kafka record's; zero: now
	Subject string    // what its NATS subject ends with
	Raw     string    // the block of headers as it goes over the wire to NATS; "": what nats.go makes of Headers

	// What becomes of it where a handler takes it by its UUID, with a fingerprint of the
	// payload: from JetStream and from Kafka.
	JetStream, Kafka Fate

	// What becomes of it where it is published with an outbox.Publisher: by a relay to
	// JetStream, and to Kafka.
	ToJetStream, ToKafka Fate

	// What becomes of its dead letter on JetStream. The zero value is that it is sent.
	Letter Fate
}

// A Header is one value of one header.
type Header struct{ Name, Value string }

const noUUID = "the message has no UUID"

// x is n times a letter.
func x(n int) string { return strings.Repeat("x", n) }

// many are n values of one header.
func many(n int, name, value string) []Header {
	headers := make([]Header, n)
	for i := range headers {
		headers[i] = Header{name, value}
	}
	return headers
}

// different are n headers.
func different(n int) []Header {
	headers := make([]Header, n)
	for i := range headers {
		headers[i] = Header{fmt.Sprint("name-", i), "value"}
	}
	return headers
}

func header(name, value string) []Header { return []Header{{name, value}} }

// Panic is the payload on which the handler panics, and Fail the one on which it fails.
const (
	Panic = "panic"
	Fail  = "fail"
)

// Messages are sent in this order, with a good one after each.
var Messages = []Message{
	// Payloads.
	{Name: "empty payload", UUID: "u-empty", Payload: []byte{}, JetStream: handled, Kafka: handled, ToJetStream: sent, ToKafka: sent},
	{Name: "tombstone", UUID: "u-tombstone", Key: []byte("k"), JetStream: handled, Kafka: handled, ToJetStream: sent, ToKafka: sent},
	{Name: "tombstone without anything", JetStream: dead(noUUID), Kafka: dead(noUUID), ToJetStream: sent, ToKafka: sent},
	{Name: "binary payload", UUID: "u-binary", Payload: []byte("\x00\xff\xfe\r\n\x00"), JetStream: handled, Kafka: handled, ToJetStream: sent, ToKafka: sent},
	{Name: "payload at the limit", UUID: "u-limit", Payload: []byte(x(1<<20 - 200)), JetStream: handled, Kafka: handled, ToJetStream: sent, ToKafka: sent},
	{Name: "huge payload", UUID: "u-huge", Payload: []byte(x(2 << 20)), JetStream: refused("maximum payload"), Kafka: refused("MESSAGE_TOO_LARGE"), ToJetStream: parked("max_payload of 1048576"), ToKafka: parked("max.message.bytes")},
	{Name: "huge payload without an id", Payload: []byte(x(1<<20 - 300)), JetStream: dead(noUUID), Kafka: dead(noUUID), ToJetStream: sent, ToKafka: sent, Letter: parked("max_payload of 1048576")},
	{Name: "deep JSON", UUID: "u-deep", Payload: []byte(strings.Repeat("[", 200_000)), JetStream: handled, Kafka: handled, ToJetStream: sent, ToKafka: sent},
	{Name: "payload that makes the handler panic", UUID: "u-panic", Payload: []byte(Panic), JetStream: dead("panic"), Kafka: dead("panic"), ToJetStream: sent, ToKafka: sent},
	{Name: "payload that the handler fails on", UUID: "u-fail", Payload: []byte(Fail), JetStream: dead("cannot be handled"), Kafka: dead("cannot be handled"), ToJetStream: sent, ToKafka: sent},

	// Ids.
	{Name: "id of 10 kB", UUID: x(10_000), Payload: []byte("p"), JetStream: handled, Kafka: handled, ToJetStream: sent, ToKafka: sent},
	{Name: "id of 10 kB that fails", UUID: x(9_999), Payload: []byte(Fail), JetStream: dead("cannot be handled"), Kafka: dead("cannot be handled"), ToJetStream: sent, ToKafka: sent},
	{Name: "id of 40 kB that fails", UUID: x(40_000), Payload: []byte(Fail), JetStream: dead("cannot be handled"), Kafka: dead("cannot be handled"), ToJetStream: sent, ToKafka: sent},
	{Name: "id of bytes that are no text", UUID: "\xff\xfe\x80", Payload: []byte("p"), JetStream: handled, Kafka: handled, ToJetStream: refused("contains NUL or is not UTF-8"), ToKafka: refused("contains NUL or is not UTF-8")},
	{Name: "id of bytes that are no text, and fails", UUID: strings.Repeat("\xff", 9_000), Payload: []byte(Fail), JetStream: dead("cannot be handled"), Kafka: dead("cannot be handled"), ToJetStream: refused("contains NUL or is not UTF-8"), ToKafka: refused("contains NUL or is not UTF-8")},
	{Name: "id with NUL", UUID: "a\x00b", Payload: []byte("p"), Kafka: handled, ToJetStream: refused("contains NUL"), ToKafka: refused("contains NUL")},
	{Name: "id with a line break", UUID: "a\r\nNats-Rollup: all", Payload: []byte("p"), JetStream: handled, Kafka: handled, ToJetStream: parked("contains a line break"), ToKafka: sent},
	{Name: "id with white space around", UUID: " a\t", Payload: []byte("p"), JetStream: handled, Kafka: handled, ToJetStream: parked("white space"), ToKafka: sent},
	{Name: "id of white space", UUID: " ", Payload: []byte("p"), JetStream: dead(noUUID), Kafka: handled, ToJetStream: parked("white space"), ToKafka: sent},
	{Name: "id once more with the same payload", UUID: "u-binary", Payload: []byte("\x00\xff\xfe\r\n\x00"), JetStream: duplicate, Kafka: duplicate, ToJetStream: sent, ToKafka: sent},
	{Name: "id once more with another payload", UUID: "u-binary", Payload: []byte("another"), JetStream: dead("another message has its key"), Kafka: dead("another message has its key"), ToJetStream: sent, ToKafka: sent},
	{Name: "id like those of dead letters", UUID: "oncemill:dead:position:jetstream:x:1:1", Payload: []byte("p"), JetStream: dead("must not begin with oncemill:dead:"), Kafka: dead("must not begin with oncemill:dead:"), ToJetStream: sent, ToKafka: sent},
	{Name: "id like a stored one", UUID: "oncemill:sha256:" + strings.Repeat("0", 64), Payload: []byte("p"), JetStream: handled, Kafka: handled, ToJetStream: sent, ToKafka: sent},
	{Name: "two ids", Headers: []Header{{uuidHeader, "u-two"}, {uuidHeader, "u-three"}}, Payload: []byte("p"), JetStream: handled, Kafka: handled},
	{Name: "empty id", Headers: header(uuidHeader, ""), Payload: []byte("p"), JetStream: dead(noUUID), Kafka: dead(noUUID), ToJetStream: sent, ToKafka: sent},

	// Headers.
	{Name: "a thousand headers", UUID: "u-thousand", Headers: different(1000), Payload: []byte("p"), JetStream: handled, Kafka: handled, ToJetStream: sent, ToKafka: sent},
	{Name: "a thousand headers and no id", Headers: different(1000), Payload: []byte("p"), JetStream: dead(noUUID), Kafka: dead(noUUID), ToJetStream: sent, ToKafka: sent},
	{Name: "ten thousand values of one header", UUID: "u-values", Headers: many(10_000, "v", ""), Payload: []byte("p"), JetStream: handled, Kafka: handled, ToJetStream: sent, ToKafka: sent},
	{Name: "ten thousand values and no id", Headers: many(10_000, "v", ""), Payload: []byte("p"), JetStream: dead(noUUID), Kafka: dead(noUUID), ToJetStream: sent, ToKafka: sent},
	{Name: "180 kB of values of one header", UUID: "u-megabyte", Headers: many(30_000, "v", "1"), Payload: []byte("p"), JetStream: refused("header size exceeds maximum"), Kafka: handled, ToJetStream: parked("more than a stream takes"), ToKafka: sent},
	{Name: "values of names that look numbered", UUID: "u-numbered", Headers: []Header{{"v", "1"}, {"v#2", "2"}, {"v", "3"}, {"v#2#2", "4"}, {"v#2", "5"}}, Payload: []byte("p"), JetStream: handled, Kafka: handled, ToJetStream: sent, ToKafka: sent},
	{Name: "value with line breaks", UUID: "u-crlf", Headers: header("v", "a\r\nNats-Rollup: all\r\n\r\n"), Payload: []byte("p"), JetStream: handled, Kafka: handled, ToJetStream: parked("contains a line break"), ToKafka: sent},
	{Name: "value with NUL", UUID: "u-nul", Headers: header("v", "a\x00b"), Payload: []byte("p"), Kafka: handled, ToJetStream: parked("NUL"), ToKafka: sent},
	{Name: "value that is no text", UUID: "u-bytes", Headers: header("v", "\xff\xfe\x80"), Payload: []byte("p"), JetStream: handled, Kafka: handled, ToJetStream: sent, ToKafka: sent},
	{Name: "value that is no text, and no id", Headers: header("v", "\xff\xfe\x80"), Payload: []byte("p"), JetStream: dead(noUUID), Kafka: dead(noUUID), ToJetStream: sent, ToKafka: sent},
	{Name: "empty name", UUID: "u-unnamed", Headers: header("", "v"), Payload: []byte("p"), JetStream: refused("header"), Kafka: handled, ToJetStream: parked(`metadata key ""`), ToKafka: sent},
	{Name: "name with a space", UUID: "u-space", Headers: header("a b", "v"), Payload: []byte("p"), JetStream: refused("header"), Kafka: handled, ToJetStream: parked(`metadata key "a b"`), ToKafka: sent},
	{Name: "name with a line break", UUID: "u-name", Headers: header("a\r\nb", "v"), Payload: []byte("p"), JetStream: refused("header"), Kafka: handled, ToJetStream: parked(`metadata key "a\r\nb"`), ToKafka: sent},
	{Name: "name that is no text", UUID: "u-name-bytes", Headers: header("\xff\x00", "v"), Payload: []byte("p"), JetStream: refused("header"), Kafka: handled, ToJetStream: parked("metadata key"), ToKafka: sent},
	{Name: "name that is no text, and no id", Headers: header("\xff\x00", "v"), Payload: []byte("p"), JetStream: refused("header"), Kafka: dead(noUUID), ToJetStream: parked("metadata key"), ToKafka: sent},
	{Name: "name of what cannot be stored", UUID: "u-base64", Headers: header("oncemill:base64", "v"), Payload: []byte("p"), JetStream: refused("header"), Kafka: handled, ToJetStream: parked("metadata key"), ToKafka: sent},
	{Name: "orders to the server", UUID: "u-orders", Headers: []Header{{"Nats-Marker-Reason", "MaxAge"}, {"Nats-Sequence", "-1"}, {"nats-rollup", "all"}}, Payload: []byte("p"), JetStream: handled, Kafka: handled, ToJetStream: sent, ToKafka: sent},
	{Name: "expectation of another stream", UUID: "u-expect", Headers: header("Nats-Expected-Stream", "another"), Payload: []byte("p"), JetStream: refused("expected stream does not match"), Kafka: handled, ToJetStream: sent, ToKafka: sent},
	{Name: "looks like the server's word", UUID: "u-status", Headers: []Header{{"Status", "409"}, {"Description", "Consumer Deleted"}}, JetStream: handled, Kafka: handled, ToJetStream: sent, ToKafka: sent},
	{Name: "looks like a dead letter", Headers: []Header{{"oncemill-dead-key", "good-0"}, {"oncemill-dead-reused", "good-1"}, {"reason_poisoned", "none"}}, Payload: []byte("p"), JetStream: dead(noUUID), Kafka: dead(noUUID), ToJetStream: sent, ToKafka: sent},
	{Name: "headers that cannot be read", Raw: "NATS/1.0\r\nno colon\r\n\r\n", Payload: []byte("p"), JetStream: dead(noUUID)},
	{Name: "headers that never end", Raw: "NATS/1.0\r\n" + uuidHeader + ": u-endless", Payload: []byte("p"), JetStream: dead(noUUID)},
	{Name: "name that nats.go would not send", Raw: "NATS/1.0\r\na(b)\xff: v\r\n\r\n", Payload: []byte("p"), JetStream: dead(noUUID), Letter: parked("cannot be the name of a NATS header")},

	// Times.
	{Name: "time of delivery that is none, and no id", Headers: header(outbox.DeliverAfterMetadata, "never"), Payload: []byte("p"), JetStream: dead(noUUID), Kafka: dead(noUUID), ToJetStream: refused(outbox.DeliverAfterMetadata), ToKafka: refused(outbox.DeliverAfterMetadata)},
	{Name: "time of delivery far ahead, and no id", Headers: header(outbox.DeliverAfterMetadata, "9999-01-01T00:00:00Z"), Payload: []byte("p"), JetStream: dead(noUUID), Kafka: dead(noUUID), ToJetStream: waiting, ToKafka: waiting},
	{Name: "origin in the year 1", UUID: "u-year-1", Headers: header(outbox.OriginMetadata, "0001-01-01T00:00:00+23:59"), Payload: []byte("p"), JetStream: handled, Kafka: handled, ToJetStream: sent, ToKafka: sent},
	{Name: "origin before what is purged", UUID: "u-1999", Headers: header(outbox.OriginMetadata, "1999-01-01T00:00:00Z"), Payload: []byte("p"), JetStream: dead("it dates from 1999"), Kafka: dead("it dates from 1999"), ToJetStream: sent, ToKafka: sent},
	{Name: "origin in the year 9999", UUID: "u-year-9999", Headers: header(outbox.OriginMetadata, "9999-12-31T23:59:59-23:59"), Payload: []byte("p"), JetStream: handled, Kafka: handled, ToJetStream: sent, ToKafka: sent},
	{Name: "origin that is no time", UUID: "u-origin", Headers: header(outbox.OriginMetadata, "\xff yesterday"), Payload: []byte("p"), JetStream: handled, Kafka: handled, ToJetStream: sent, ToKafka: sent},
	{Name: "timestamp of 1999", UUID: "u-time-1999", Time: time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC), Payload: []byte("p"), Kafka: dead("it dates from 1999")},
	{Name: "timestamp before 1970", UUID: "u-time-1900", Time: time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC), Payload: []byte("p"), Kafka: handled},
	{Name: "timestamp of the year 200000000", UUID: "u-time-late", Time: time.UnixMilli(1 << 62), Payload: []byte("p"), Kafka: handled},

	// Keys of Kafka records, and ordering keys.
	{Name: "empty record key", UUID: "u-key-empty", Key: []byte{}, Payload: []byte("p"), JetStream: handled, Kafka: handled, ToJetStream: sent, ToKafka: sent},
	{Name: "binary record key, and no id", Key: []byte("\x00\xff\r\n"), Payload: []byte("p"), Kafka: dead(noUUID), ToJetStream: sent, ToKafka: sent},
	{Name: "record key of 500 kB", UUID: "u-key-long", Key: []byte(x(500_000)), Payload: []byte("p"), Kafka: handled, ToJetStream: sent, ToKafka: sent},
	{Name: "record key of 500 kB, and no id", Key: []byte(x(500_001)), Payload: []byte("p"), Kafka: dead(noUUID), ToJetStream: sent, ToKafka: sent},
	{Name: "ordering key in a header", UUID: "u-key-header", Key: []byte("k"), Headers: []Header{{outbox.OrderingKeyMetadata, "1"}, {outbox.OrderingKeyMetadata, "2"}}, Payload: []byte("p"), JetStream: handled, Kafka: handled},
	{Name: "ordering key of two values, and no id", Headers: []Header{{outbox.OrderingKeyMetadata, "\x00"}, {outbox.OrderingKeyMetadata, "2"}}, Payload: []byte("p"), Kafka: dead(noUUID)},

	// Subjects.
	{Name: "subject at the limit of what is sent", UUID: "u-subject", Subject: x(3700), Payload: []byte("p"), JetStream: handled},
	{Name: "subject at the server's limit", UUID: "u-subject-long", Subject: x(3950), Payload: []byte("p"), JetStream: handled},
	{Name: "subject of a thousand parts", UUID: "u-parts", Subject: strings.Repeat("x.", 999) + "x", Payload: []byte("p"), JetStream: handled},
	{Name: "subject that is no text, and no id", Subject: "\xff\xfe", Payload: []byte("p"), JetStream: dead(noUUID)},
}

const uuidHeader = "_watermill_message_uuid"

// Watermill is the message as it is given to an outbox.Publisher. Of a header with several
// values the further ones are numbered, as they come from a subscriber.
func (m *Message) Watermill() *message.Message {
	msg := message.NewMessage(m.UUID, m.Payload)
	msg.Metadata = message.Metadata{}
	values := make(map[string][]string)
	for _, h := range m.Headers {
		values[h.Name] = append(values[h.Name], h.Value)
		msg.Metadata[h.Name] = values[h.Name][0]
	}
	for name, all := range values {
		multivalue.Spread(msg.Metadata, name, all[1:], func(name string) bool { return values[name] != nil })
	}
	if m.Key != nil {
		msg.Metadata[outbox.OrderingKeyMetadata] = string(m.Key)
	}
	return msg
}

// JSON are messages that are taken by the member "id" of their payload, with a good one
// after each.
var JSON = []Message{
	{Name: "no payload", JetStream: dead("EOF")},
	{Name: "white space", Payload: []byte(" \n"), JetStream: dead("EOF")},
	{Name: "no JSON", Payload: []byte("id"), JetStream: dead("invalid character")},
	{Name: "byte order mark", Payload: []byte("\ufeff{\"id\": \"mark\"}"), JetStream: dead("invalid character")},
	{Name: "no text", Payload: []byte("{\"id\": \"\xff\"}"), JetStream: dead("not valid UTF-8")},
	{Name: "UTF-16", Payload: []byte("{\x00}\x00"), JetStream: dead("invalid character")},
	{Name: "two values", Payload: []byte(`{"id": "a"} {"id": "b"}`), JetStream: dead("more than one value")},
	{Name: "null", Payload: []byte(`null`), JetStream: dead("no object")},
	{Name: "array", Payload: []byte(`[{"id": "a"}]`), JetStream: dead("no object")},
	{Name: "10,000 deep", Payload: []byte(`{"id": "deep", "a": ` + strings.Repeat("[", 9_999) + strings.Repeat("]", 9_999) + `}`), JetStream: handled},
	{Name: "10,001 deep", Payload: []byte(`{"id": "deeper", "a": ` + strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000) + `}`), JetStream: dead("exceeded max depth")},
	{Name: "100,000 deep, and no end", Payload: []byte(strings.Repeat(`{"id":`, 100_000)), JetStream: dead("exceeded max depth")},
	{Name: "without", Payload: []byte(`{"ID": "a"}`), JetStream: dead(`"id" is missing`)},
	{Name: "id null", Payload: []byte(`{"id": null}`), JetStream: dead("neither a string nor a number")},
	{Name: "id true", Payload: []byte(`{"id": true}`), JetStream: dead("neither a string nor a number")},
	{Name: "id array", Payload: []byte(`{"id": ["a"]}`), JetStream: dead("neither a string nor a number")},
	{Name: "id object", Payload: []byte(`{"id": {"id": "a"}}`), JetStream: dead("neither a string nor a number")},
	{Name: "id NaN", Payload: []byte(`{"id": NaN}`), JetStream: dead("invalid character")},
	{Name: "empty id", Payload: []byte(`{"id": ""}`), JetStream: dead("is an empty string")},
	{Name: "id NUL", Payload: []byte(`{"id": "\u0000"}`), JetStream: handled},
	{Name: "id of half a pair", Payload: []byte(`{"id": "\ud800"}`), JetStream: dead("surrogate pair")},
	{Name: "id twice", Payload: []byte(`{"id": "first", "id": "second"}`), JetStream: handled},
	{Name: "number of 400 digits", Payload: []byte(`{"id": 1` + strings.Repeat("0", 399) + `}`), JetStream: handled},
	{Name: "number that is too large", Payload: []byte(`{"id": 1e400}`), JetStream: handled},
	{Name: "number", Payload: []byte(`{"id": 7}`), JetStream: handled},
	{Name: "the same number as a string", Payload: []byte(`{"id": "7"}`), JetStream: dead("another message has its key")},
	{Name: "the same number again", Payload: []byte(`{"id": 7}`), JetStream: duplicate},
	{Name: "id of 10 kB", Payload: []byte(`{"id": "` + x(10_000) + `"}`), JetStream: handled},
	{Name: "id of 900 kB", Payload: []byte(`{"id": "` + x(900_000) + `"}`), JetStream: handled},
	{Name: "id like those of dead letters", Payload: []byte(`{"id": "oncemill:dead:x"}`), JetStream: dead("must not begin with oncemill:dead:")},
}

// GoodMessage is one that can be taken by its UUID, and by the id in its payload.
func GoodMessage(i int) Message {
	return Message{Name: Good(i), UUID: Good(i), Payload: fmt.Appendf(nil, `{"id": %q}`, Good(i)), JetStream: handled, Kafka: handled}
}

// A Row is one that SQL inserts into the outbox.
type Row struct {
	Name    string
	Columns string // beside the uuid, which is the name, and the topic
	Values  string // SQL
	Topic   string // SQL; "": that of the stream or of Kafka

	ToJetStream, ToKafka Fate // what becomes of it
}

// number is one of so many digits, and deep an array in so many others, in SQL.
const (
	number = `('{"n": 1' || repeat('0', 399) || '}')::jsonb`
	deep   = `('{"n": ' || repeat('[', %[1]d) || repeat(']', %[1]d) || '}')::jsonb`
)

// Rows are inserted in this order, with a good one after each.
var Rows = []Row{
	// Metadata.
	{Name: "null", Columns: "metadata", Values: `NULL`, ToJetStream: refused("not-null"), ToKafka: refused("not-null")},
	{Name: "JSON null", Columns: "metadata", Values: `'null'`, ToJetStream: refused("outbox_metadata_check"), ToKafka: refused("outbox_metadata_check")},
	{Name: "array", Columns: "metadata", Values: `'[{"a": "b"}]'`, ToJetStream: refused("outbox_metadata_check"), ToKafka: refused("outbox_metadata_check")},
	{Name: "string", Columns: "metadata", Values: `'"a"'`, ToJetStream: refused("outbox_metadata_check"), ToKafka: refused("outbox_metadata_check")},
	{Name: "number", Columns: "metadata", Values: `'1'`, ToJetStream: refused("outbox_metadata_check"), ToKafka: refused("outbox_metadata_check")},
	{Name: "no JSON", Columns: "metadata", Values: `'{'`, ToJetStream: refused("invalid input syntax"), ToKafka: refused("invalid input syntax")},
	{Name: "JSON with NUL", Columns: "metadata", Values: `'{"a": "\u0000"}'`, ToJetStream: refused("Unicode escape"), ToKafka: refused("Unicode escape")},
	{Name: "JSON with half a pair", Columns: "metadata", Values: `'{"a": "\ud800"}'`, ToJetStream: refused("invalid input syntax"), ToKafka: refused("invalid input syntax")},
	{Name: "values of every type", Columns: "metadata", Values: `'{"a": 1, "b": null, "c": [1, {"d": []}], "e": true, "f": {}, "g": ""}'`, ToJetStream: sent, ToKafka: sent},
	{Name: "a number of 400 digits", Columns: "metadata", Values: number, ToJetStream: sent, ToKafka: sent},
	{Name: "a number of 100,000 digits", Columns: "metadata", Values: `'{"n": 1e100000}'`, ToJetStream: parked("headers"), ToKafka: sent},
	{Name: "an array 1,000 deep", Columns: "metadata", Values: fmt.Sprintf(deep, 1000), ToJetStream: sent, ToKafka: sent},
	{Name: "an object member with a value that has escapes", Columns: "metadata", Values: `'{"a": "\" \\ \t \u00e4 \ud83d\ude00"}'`, ToJetStream: sent, ToKafka: sent},
	{Name: "line breaks", Columns: "metadata", Values: `'{"a": "b\r\nNats-Rollup: all"}'`, ToJetStream: parked("contains a line break"), ToKafka: sent},
	{Name: "a line break in a name", Columns: "metadata", Values: `'{"a\r\nb": "c"}'`, ToJetStream: parked("cannot be the name of a NATS header"), ToKafka: sent},
	{Name: "an empty name", Columns: "metadata", Values: `'{"": "c"}'`, ToJetStream: parked("cannot be the name of a NATS header"), ToKafka: sent},
	{Name: "1 MB of headers", Columns: "metadata", Values: `(SELECT jsonb_object_agg('header-' || n, repeat('v', 1000)) FROM generate_series(1, 1100) n)`, ToJetStream: parked("max_payload"), ToKafka: parked("max.message.bytes")},
	{Name: "100 kB of headers", Columns: "metadata", Values: `(SELECT jsonb_object_agg('header-' || n, repeat('v', 100)) FROM generate_series(1, 1000) n)`, ToJetStream: parked("65535"), ToKafka: sent},
	{Name: "180 kB of values of one header", Columns: "metadata", Values: `(SELECT jsonb_object_agg(CASE n WHEN 1 THEN 'v' ELSE 'v#' || n END, '') FROM generate_series(1, 30000) n)`, ToJetStream: parked("65535"), ToKafka: sent},
	{Name: "base64 that is none", Columns: "metadata", Values: `'{"oncemill:base64": {"a": "!"}}'`, ToJetStream: parked("oncemill:base64 must be an object"), ToKafka: parked("oncemill:base64 must be an object")},
	{Name: "base64 in an array", Columns: "metadata", Values: `'{"oncemill:base64": []}'`, ToJetStream: parked("oncemill:base64 must be an object"), ToKafka: parked("oncemill:base64 must be an object")},
	{Name: "an id in the metadata", Columns: "metadata", Values: `'{"_watermill_message_uuid": "another", "Nats-Msg-Id": "good 1", "oncemill-dedup-id": "x"}'`, ToJetStream: sent, ToKafka: sent},
	{Name: "an origin in the metadata", Columns: "metadata", Values: `'{"oncemill-origin": "yesterday"}'`, ToJetStream: sent, ToKafka: sent},

	// Ordering keys.
	{Name: "an ordering key in the metadata that is a number", Columns: "metadata", Values: `'{"oncemill-ordering-key": 7}'`, ToJetStream: sent, ToKafka: sent},
	{Name: "an ordering key in the metadata that is null", Columns: "metadata", Values: `'{"oncemill-ordering-key": null}'`, ToJetStream: sent, ToKafka: sent},
	{Name: "an ordering key in the metadata that is an array", Columns: "metadata", Values: `'{"oncemill-ordering-key": [1, {"a": "b"}]}'`, ToJetStream: sent, ToKafka: sent},
	{Name: "two ordering keys", Columns: "metadata, ordering_key", Values: `'{"oncemill-ordering-key": "one"}', 'two'`, ToJetStream: sent, ToKafka: sent},
	{Name: "an empty ordering key", Columns: "ordering_key", Values: `''`, ToJetStream: sent, ToKafka: sent},
	{Name: "a binary ordering key", Columns: "ordering_key", Values: `'\x00ff0d0a00'`, ToJetStream: sent, ToKafka: sent},
	{Name: "an ordering key of 100 kB", Columns: "ordering_key", Values: `convert_to(repeat('k', 100000), 'UTF8')`, ToJetStream: sent, ToKafka: sent},
	{Name: "an ordering key of 5 MB", Columns: "ordering_key", Values: `convert_to(repeat('k', 5000000), 'UTF8')`, ToJetStream: sent, ToKafka: parked("max.message.bytes")},

	// Payloads and ids.
	{Name: "a tombstone", Columns: "payload", Values: `NULL`, ToJetStream: sent, ToKafka: sent},
	{Name: "a binary payload", Columns: "payload", Values: `'\x00ff0d0a00'`, ToJetStream: sent, ToKafka: sent},
	{Name: "a payload of 3 MB", Columns: "payload", Values: `convert_to(repeat('p', 3000000), 'UTF8')`, ToJetStream: parked("max_payload"), ToKafka: parked("max.message.bytes")},

	// Topics.
	{Name: "no topic", Topic: `NULL`, ToJetStream: refused("not-null"), ToKafka: refused("not-null")},
	{Name: "an empty topic", Topic: `''`, ToJetStream: refused("outbox_topic_check"), ToKafka: refused("outbox_topic_check")},
	{Name: "a topic of white space", Topic: `' '`, ToJetStream: parked("contains a space"), ToKafka: parked("is no Kafka topic")},
	{Name: "a topic with a line break", Topic: `E'a\r\nPUB x 1'`, ToJetStream: parked("contains a space"), ToKafka: parked("is no Kafka topic")},
	{Name: "a pattern", Topic: `'orders.*'`, ToJetStream: parked("is a pattern"), ToKafka: parked("is no Kafka topic")},
	{Name: "a topic of the server's own", Topic: `'$JS.API.STREAM.DELETE.x'`, ToJetStream: parked("the server's own interface"), ToKafka: parked("is no Kafka topic")},
	{Name: "a topic of 1 MB", Topic: `repeat('t', 1000000)`, ToJetStream: parked("bytes are more than 3840"), ToKafka: parked("bytes are more than 249")},
	{Name: "a topic that is cut in the middle of a letter", Topic: `repeat('t', 63) || repeat('ü', 2000)`, ToJetStream: parked("bytes are more than 3840"), ToKafka: parked("bytes are more than 249")},
	{Name: "two dots", Topic: `'..'`, ToJetStream: parked("empty part"), ToKafka: parked("a name for folders")},
	{Name: "a topic that is not there", Topic: `'hostile-nobody'`, ToJetStream: deferred("no stream captures subject"), ToKafka: deferred("does not exist")},

	// What is the relay's.
	{Name: "written at the end of time", Columns: "created_at", Values: `'infinity'`, ToJetStream: sent, ToKafka: sent},
	{Name: "written before all time", Columns: "created_at", Values: `'-infinity'`, ToJetStream: sent, ToKafka: sent},
	{Name: "written before Christ", Columns: "created_at", Values: `'4713-01-01 BC'`, ToJetStream: sent, ToKafka: sent},
	{Name: "written in the year 294276", Columns: "created_at", Values: `'294276-12-31'`, ToJetStream: sent, ToKafka: sent},
	{Name: "tried very often", Columns: "attempts", Values: `2147483647`, ToJetStream: sent, ToKafka: sent},
	{Name: "tried very often, and not there", Columns: "attempts", Values: `2147483647`, Topic: `'hostile-nobody-either'`, ToJetStream: deferred("no stream captures subject"), ToKafka: deferred("does not exist")},
	{Name: "tried very often, and refused", Columns: "attempts", Values: `2147483647`, Topic: `' '`, ToJetStream: parked("contains a space"), ToKafka: parked("is no Kafka topic")},
	{Name: "tried less than never, and refused", Columns: "attempts", Values: `-2147483648`, Topic: `' '`, ToJetStream: parked("contains a space"), ToKafka: parked("is no Kafka topic")},
	{Name: "not before the end of time", Columns: "not_before", Values: `'infinity'`, ToJetStream: waiting, ToKafka: waiting},
	{Name: "not before the begin of time", Columns: "not_before", Values: `'-infinity'`, ToJetStream: sent, ToKafka: sent},
	{Name: "parked at the end of time", Columns: "parked_at, last_error", Values: `'infinity', 'by hand'`, ToJetStream: parked("by hand"), ToKafka: parked("by hand")},
	{Name: "the first id", Columns: "id", Values: `-9223372036854775808`, ToJetStream: sent, ToKafka: sent},
	{Name: "the last id", Columns: "id", Values: `9223372036854775807`, ToJetStream: sent, ToKafka: sent},
	{Name: "the last id but one, with an ordering key", Columns: "id, ordering_key", Values: `9223372036854775806, 'k'`, ToJetStream: sent, ToKafka: sent},
}

// LetterOf is what becomes of the message's dead letter on JetStream.
func (m *Message) LetterOf() Fate {
	if m.Letter == (Fate{}) {
		return sent
	}
	return m.Letter
}

// A Request is one to the guard, as it goes over the wire. Fuzz targets and schemathesis
// make up bodies, ids and queries that are HTTP; these are what comes around them.
type Request struct {
	Name   string
	Raw    string
	Cut    bool // the client says nothing more then
	Status int  // of the answer
	Says   string
	Claims string // the id that is claimed by it; "": none is
}

// claim is a request to /claim for an id, with further headers.
func claim(id, headers string) string {
	return post(`{"request_id":"`+id+`","action":"x"}`, headers)
}

func post(body, headers string) string {
	return fmt.Sprintf("POST /claim HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n%sContent-Length: %d\r\n\r\n%s", headers, len(body), body)
}

// chunked is a request whose body is sent in pieces.
func chunked(body string) string {
	return "POST /claim HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + body
}

// headerLines are n different headers.
func headerLines(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "H-%d: v\r\n", i)
	}
	return b.String()
}

// Requests are sent in this order, each on a connection of its own, with a good one after
// each.
var Requests = []Request{
	// Not HTTP.
	{Name: "nothing", Raw: "\r\n", Cut: true, Status: 400},
	{Name: "no HTTP", Raw: "hello\r\n\r\n", Status: 400},
	{Name: "TLS", Raw: "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", Status: 400},
	{Name: "NUL in the request line", Raw: "POST /claim\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n", Status: 400},
	{Name: "no version", Raw: "GET /health\r\n\r\n", Status: 400},
	{Name: "another version", Raw: "GET /health HTTP/9.9\r\nHost: localhost\r\n\r\n", Status: 505},
	{Name: "no host", Raw: "GET /health HTTP/1.1\r\n\r\n", Status: 400, Says: "Host"},
	{Name: "two hosts", Raw: "GET /health HTTP/1.1\r\nHost: localhost\r\nHost: b\r\n\r\n", Status: 400},
	{Name: "another host", Raw: "GET /health HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", Status: 403, Says: "has another name than localhost"},

	// Headers.
	{Name: "a hundred headers", Raw: claim("hundred", headerLines(100)), Status: 200, Says: "PROCEED", Claims: "hundred"},
	{Name: "ten thousand headers", Raw: claim("thousands", headerLines(10_000)), Status: 431},
	{Name: "a header of 1 MB", Raw: claim("large", "H: "+x(1<<20)+"\r\n"), Status: 431},
	{Name: "a header that is folded", Raw: claim("folded", "H: a\r\n b\r\n"), Status: 200, Says: "PROCEED", Claims: "folded"},
	{Name: "a header without a name", Raw: claim("unnamed", ": v\r\n"), Status: 400},
	{Name: "a header with a space in its name", Raw: claim("space", "a b: v\r\n"), Status: 400},
	{Name: "a header with NUL", Raw: claim("nul", "H: a\x00b\r\n"), Status: 400},
	{Name: "a header that is no text", Raw: claim("binary", "H: \xff\xfe\r\n"), Status: 200, Says: "PROCEED", Claims: "binary"},
	{Name: "a token that is no text", Raw: claim("token", "X-SafeAgent-Settlement-Token: \xff\xfe\r\n"), Status: 200, Says: "PROCEED", Claims: "token"},

	// Bodies and their lengths.
	{Name: "two lengths", Raw: claim("lengths", "Content-Length: 1\r\n"), Status: 400},
	{Name: "a length below 0", Raw: "POST /claim HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n{}", Status: 400},
	{Name: "a length that is none", Raw: "POST /claim HTTP/1.1\r\nHost: localhost\r\nContent-Length: ten\r\n\r\n{}", Status: 400},
	{Name: "a body that is cut off", Raw: "POST /claim HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n" + `{"request_id":"cut","action":"x"}`, Cut: true, Status: 400, Says: "could not be read to its end"},
	{Name: "a length and pieces", Raw: claim("smuggled", "Transfer-Encoding: chunked\r\n"), Status: 400},
	{Name: "pieces of no length", Raw: chunked("zz\r\n{}\r\n0\r\n\r\n"), Status: 400, Says: "could not be read to its end"},
	{Name: "a piece that is cut off", Raw: chunked("ff\r\n{"), Cut: true, Status: 400, Says: "could not be read to its end"},
	{Name: "pieces with a trailer", Raw: chunked("2d\r\n" + `{"request_id":"trailer", "action":"something"}`[:45] + "\r\n1\r\n}\r\n0\r\nX-SafeAgent-Audit-Token: a\r\n\r\n"), Status: 200, Says: "PROCEED", Claims: "trailer"},
	{Name: "an encoding that is not there", Raw: claim("encoded", "Transfer-Encoding: gzip\r\n"), Status: 501},
	{Name: "a body of gzip", Raw: post("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03", "Content-Encoding: gzip\r\n"), Status: 422, Says: "not UTF-8"},
	{Name: "a body of UTF-16", Raw: post("\xff\xfe{\x00}\x00", "Content-Type: application/json; charset=utf-16\r\n"), Status: 422, Says: "not UTF-8"},
	{Name: "a body of another type", Raw: claim("form", "Content-Type: application/x-www-form-urlencoded\r\n"), Status: 200, Says: "PROCEED", Claims: "form"},
	{Name: "a second request behind the first", Raw: claim("first", "") + claim("second", ""), Status: 200, Says: "PROCEED", Claims: "first"},

	// Ids and fields of other consumers' messages.
	{Name: "an id of 10 kB", Raw: claim(x(10_000), ""), Status: 422, Says: "at most 512 bytes"},
	{Name: "an id like those of dead letters", Raw: claim("oncemill:dead:x", ""), Status: 422, Says: "prefix is reserved"},
	{Name: "an id with a line break", Raw: claim(`a\r\nb`, ""), Status: 200, Says: "PROCEED", Claims: "a\r\nb"},
	{Name: "an id twice", Raw: post(`{"request_id":"one","request_id":"two","action":"x"}`, ""), Status: 200, Says: "PROCEED", Claims: "two"},
	{Name: "an id in another case", Raw: post(`{"Request_ID":"three","action":"x"}`, ""), Status: 422, Says: "Field required"},
	{Name: "an id of another request", Raw: claim("two", ""), Status: 200, Says: "PENDING"},
	{Name: "an amount of 400 digits", Raw: post(`{"request_id":"amount","action":"x","amount":1`+strings.Repeat("0", 399)+`}`, ""), Status: 422, Says: "decimal number"},

	// Paths.
	{Name: "a URL for a path", Raw: "GET http://localhost/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", Status: 200},
	{Name: "a path of 15 kB", Raw: "GET /" + x(15<<10) + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", Status: 404, Says: "Not Found"},
	{Name: "a path that ends in the middle of an escape", Raw: "POST /settle/% HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", Status: 400},
	{Name: "a method in small letters", Raw: "post /claim HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", Status: 405, Says: "Method Not Allowed"},
	{Name: "a method of nobody", Raw: "CLAIM /claim HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", Status: 405, Says: "Method Not Allowed"},
	{Name: "a proxy's method", Raw: "CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", Status: 404, Says: "Not Found"},
}

// GoodRequest claims an id.
func GoodRequest(id string) Request { return Request{Name: id, Raw: claim(id, "")} }
