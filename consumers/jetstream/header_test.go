package jetstream_test

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
)

func TestAllValuesOfAHeaderAreKept(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	raw := nats.NewMsg(b.topic("a"))
	raw.Header = nats.Header{
		"Via":    {"one", "two", "three"},
		"Single": {"1"},
		"via":    {"another name"},
		"Via#2":  {"a name like ours"},
		"Empty":  {""},
		"Umlaut": {"äöü"},
	}
	b.store(raw)
	msg := receive(t, b.subscribe(b.subscriber("g"), b.topic("a")))
	want := message.Metadata{
		"Via": "one", "Via#2": "a name like ours", "Via#3": "two", "Via#4": "three",
		"Single": "1", "via": "another name", "Empty": "", "Umlaut": "äöü",
	}
	if !maps.Equal(msg.Metadata, want) {
		t.Errorf("metadata %q", msg.Metadata)
	}
	d, _ := jetstream.FromContext(msg.Context())
	if fmt.Sprint(d.Header["Via"]) != "[one two three]" {
		t.Errorf("headers %q", d.Header)
	}
	msg.Ack()
}

func TestThePublisherFoldsNumberedMetadata(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	msg := message.NewMessage("uuid-1", []byte("x"))
	msg.Metadata = message.Metadata{
		"Via": "one", "Via#2": "two", "Via#3": "three",
		"Gap": "1", "Gap#3": "not a further value", "Lone#2": "neither", "Odd#02": "nor this", "Mark#": "nor that",
	}
	must(t, (&jetstream.Publisher{Conn: b.nc}).Publish(b.topic("a"), msg))
	got := receive(t, b.subscribe(b.subscriber("g"), b.topic("a")))
	if got.UUID != "uuid-1" || !maps.Equal(got.Metadata, msg.Metadata) {
		t.Errorf("UUID %q, metadata %q", got.UUID, got.Metadata)
	}
	d, _ := jetstream.FromContext(got.Context())
	if fmt.Sprint(d.Header["Via"]) != "[one two three]" || len(d.Header["Gap#3"]) != 1 || len(d.Header["Via#2"]) != 0 {
		t.Errorf("headers %q", d.Header)
	}
	got.Ack()
}

// An ordering key is for Kafka, and may hold bytes that no header can carry.
func TestOrderingKeysAreNotSent(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	metadata := message.Metadata{"a": "b", outbox.OrderingKeyMetadata: "order\x00\r\n\xff"}
	msg := message.NewMessage("u", nil)
	msg.Metadata = metadata
	sink := &jetstream.Sink{Conn: b.nc, ServerHeaders: true}
	rows := []outbox.Row{{DedupID: "d", Topic: b.topic("a"), OrderingKey: []byte("order\x00"), Metadata: metadata}}
	must(t, (&jetstream.Publisher{Conn: b.nc}).Publish(b.topic("a"), msg))
	must(t, errors.Join(sink.PublishBatch(t.Context(), rows)...))
	messages := b.subscribe(b.subscriber("g"), b.topic("a"))
	for range 2 {
		got := receive(t, messages)
		delete(got.Metadata, nats.MsgIdHdr)
		if !maps.Equal(got.Metadata, message.Metadata{"a": "b"}) || len(got.Payload) != 0 {
			t.Errorf("metadata %q, payload %q", got.Metadata, got.Payload)
		}
		got.Ack()
	}
}

func TestForeignMessagesArrive(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	messages := b.subscribe(b.subscriber("g"), b.topic("a"))

	b.store(&nats.Msg{Subject: b.topic("a"), Data: []byte("no header")})
	msg := receive(t, messages)
	if msg.UUID != "" || len(msg.Metadata) != 0 || msg.Metadata == nil || string(msg.Payload) != "no header" {
		t.Errorf("message %q %q %v", msg.UUID, msg.Payload, msg.Metadata)
	}
	msg.Ack()

	b.store(&nats.Msg{Subject: b.topic("a"), Header: nats.Header{nats.MsgIdHdr: {"id-1"}}})
	msg = receive(t, messages)
	if msg.UUID != "id-1" || len(msg.Payload) != 0 {
		t.Errorf("message %q %q", msg.UUID, msg.Payload)
	}
	msg.Ack()
}

// A message without payload and with a header "Status" looks like the server's
// own word; nats.go's Fetch and Consume never deliver it.
func TestAMessageMayLookLikeAStatus(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	messages := b.subscribe(b.subscriber("g"), b.topic("a"))
	for _, status := range []string{"100", "404", "409", "503"} {
		b.store(&nats.Msg{Subject: b.topic("a"), Header: nats.Header{"Status": {status}, "Description": {"Consumer Deleted"}}})
		msg := receive(t, messages)
		if msg.Metadata.Get("Status") != status || attempt(t, msg) != 1 {
			t.Errorf("metadata %v, attempt %d", msg.Metadata, attempt(t, msg))
		}
		msg.Ack()
	}
}

func TestUndecodableHeadersDoNotStopTheStream(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	messages := b.subscribe(b.subscriber("g"), b.topic("a"))
	for _, header := range []string{
		"NATS/1.0\r\nno colon\r\n\r\n",
		"NATS/1.0\r\n: no name\r\n\r\n",
		"NATS/1.0\r\nName: never ends",
		"NATS/1.0\r\n\xff\xfe: \x00\x01\r\n\r\n",
		"NATS/1.0 4\r\n\r\n",
		"HTTP/1.1 200 OK\r\n\r\n",
	} {
		sendRaw(t, fmt.Sprintf("HPUB %s %d %d\r\n%spayload\r\n", b.topic("a"), len(header), len(header)+7, header))
		msg := receive(t, messages)
		if string(msg.Payload) != "payload" {
			t.Errorf("header %q: payload %q", header, msg.Payload)
		}
		msg.Ack()
	}
	b.publish(b.topic("a"), 1)
	receive(t, messages).Ack()
}

// sendRaw says something to the server that no client library would.
func sendRaw(t *testing.T, command string) {
	t.Helper()
	u, err := url.Parse(testenv.NATSURL(t))
	must(t, err)
	conn, err := net.Dial("tcp", u.Host)
	must(t, err)
	defer conn.Close()
	in := bufio.NewReader(conn)
	_, err = in.ReadString('\n') // INFO
	must(t, err)
	_, err = fmt.Fprintf(conn, "CONNECT {\"verbose\":false,\"headers\":true}\r\n%sPING\r\n", command)
	must(t, err)
	for {
		line, err := in.ReadString('\n')
		must(t, err)
		if strings.HasPrefix(line, "PONG") {
			return
		}
		if strings.HasPrefix(line, "-ERR") {
			t.Fatal(line)
		}
	}
}
