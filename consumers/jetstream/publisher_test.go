package jetstream_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/outbox"
)

func TestPublishReturnsWhenTheStreamHasTheMessages(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	var messages []*message.Message
	for i := range 50 {
		messages = append(messages, message.NewMessage(fmt.Sprint("uuid-", i), fmt.Append(nil, i)))
	}
	must(t, (&jetstream.Publisher{Conn: b.nc}).Publish(b.topic("a"), messages...))
	stream, err := b.js.Stream(ctx(t), b.stream)
	must(t, err)
	if n := stream.CachedInfo().State.Msgs; n != 50 {
		t.Errorf("%d messages", n)
	}
	received := b.subscribe(b.subscriber("g"), b.topic("a"))
	for i := range 50 {
		msg := receive(t, received)
		if msg.UUID != fmt.Sprint("uuid-", i) || string(msg.Payload) != fmt.Sprint(i) {
			t.Errorf("message %q %q, want %d", msg.UUID, msg.Payload, i)
		}
		msg.Ack()
	}
}

func TestPublishErrorsNameTheTopicAndTheRemedy(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(cfg *natsjs.StreamConfig) { cfg.MaxMsgSize = 200_000 })
	p := &jetstream.Publisher{Conn: b.nc}
	with := func(key, value string) *message.Message {
		msg := message.NewMessage("uuid-1", nil)
		msg.Metadata.Set(key, value)
		return msg
	}
	plain := message.NewMessage("uuid-1", nil)
	tooLarge := message.NewMessage("uuid-1", make([]byte, 2<<20))
	for _, c := range []struct {
		topic   string
		msg     *message.Message
		refused bool
		words   []string
	}{
		{"nobody.has.this", plain, false, []string{`"nobody.has.this"`, "nats stream add"}},
		{b.topic("a"), tooLarge, true, []string{b.topic("a"), "max_payload", "1048576", "20971"}},
		{b.topic("a"), message.NewMessage("uuid-1", make([]byte, 250_000)), true, []string{b.topic("a"), "max_msg_size", "2500"}},
		{b.topic("a"), with("k", strings.Repeat("x", 70_000)), true, []string{"headers", "65535"}},
		{b.topic("a"), with("k", "a\nb"), true, []string{b.topic("a"), `"k"`, "line break"}},
		{b.topic("a"), with("k", "a\rb"), true, []string{`"k"`, "line break"}},
		{b.topic("a"), with("k", "a\x00b"), true, []string{`"k"`, "NUL"}},
		{b.topic("a"), with("k 1", "v"), true, []string{`"k 1"`, "name of a NATS header"}},
		{b.topic("a"), with("ä", "v"), true, []string{"name of a NATS header"}},
		{b.topic("a"), with("", "v"), true, []string{"name of a NATS header"}},
		{b.topic("a"), message.NewMessage("a\nb", nil), true, []string{jetstream.UUIDHeader}},
		{"", plain, true, []string{"no topic"}},
		{b.topic("*"), plain, true, []string{b.topic("*"), "pattern"}},
		{b.prefix + "..a", plain, true, []string{"empty part"}},
		{b.prefix + ".a b", plain, true, []string{"space"}},
		{"$JS.API.STREAM.PURGE." + b.stream, plain, true, []string{"server's own"}},
	} {
		err := p.Publish(c.topic, c.msg)
		complains(t, err, append(c.words, "oncemill: jetstream: publish message")...)
		if errors.Is(err, outbox.ErrRefused) != c.refused {
			t.Errorf("refused is not %v: %v", c.refused, err)
		}
	}
	complains(t, (&jetstream.Publisher{}).Publish("a", plain), "Publisher.Conn")
	complains(t, (&jetstream.Publisher{Conn: b.nc, Timeout: -1}).Publish("a", plain), "Publisher.Timeout")
	must(t, p.Publish(b.topic("a"), plain)) // the connection has survived all that
}

// A subject as long as the check allows must not make the server close the
// connection, which it does beyond 4,096 bytes of protocol.
func TestTheLongestSubject(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	topic := b.topic(strings.Repeat("a", 3840-len(b.topic(""))))
	msg := message.NewMessage("uuid-1", make([]byte, 900_000))
	msg.Metadata.Set("k", strings.Repeat("v", 60_000))
	must(t, (&jetstream.Publisher{Conn: b.nc}).Publish(topic, msg))
	errs := (&jetstream.Sink{Conn: b.nc}).PublishBatch(ctx(t), []outbox.Row{{DedupID: "1", Topic: topic}, {DedupID: "2", Topic: topic + "a"}})
	if errs[0] != nil || !errors.Is(errs[1], outbox.ErrRefused) {
		t.Errorf("%v", errs)
	}
	if b.nc.Reconnects > 0 {
		t.Error("the connection was closed")
	}
	receive(t, b.subscribe(b.subscriber("g"), b.topic("*"))).Ack()
}

func TestMessagesAreDeduplicatedOnlyIfAsked(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	stored := func() uint64 {
		stream, err := b.js.Stream(ctx(t), b.stream)
		must(t, err)
		return stream.CachedInfo().State.Msgs
	}
	topics := []string{b.topic("a"), b.topic("b"), b.topic("c")}
	publish := func(p *jetstream.Publisher) {
		for _, topic := range topics {
			for range 2 {
				must(t, p.Publish(topic, message.NewMessage("same", nil)))
			}
		}
	}
	publish(&jetstream.Publisher{Conn: b.nc})
	if n := stored(); n != 6 {
		t.Errorf("%d messages without MsgID", n)
	}
	publish(&jetstream.Publisher{Conn: b.nc, MsgID: jetstream.TopicUUID})
	if n := stored(); n != 9 {
		t.Errorf("%d messages with TopicUUID after the 6", n)
	}
	p := &jetstream.Publisher{Conn: b.nc, MsgID: jetstream.TopicUUID}
	for range 2 {
		must(t, p.Publish(topics[0], message.NewMessage("", nil)))
	}
	if n := stored(); n != 11 {
		t.Errorf("%d messages after two without UUID", n)
	}
}

// A handler that passes on the metadata of the message it got must not repeat
// what that message told the server.
func TestHeadersForTheServerAreNotPassedOn(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(cfg *natsjs.StreamConfig) { cfg.AllowRollup = true })
	b.publish(b.topic("kept"), 3)
	b.store(&nats.Msg{Subject: b.topic("in"), Header: nats.Header{nats.MsgIdHdr: {"id-1"}, "tenant": {"acme"}}})
	b.store(&nats.Msg{Subject: b.topic("in"), Header: nats.Header{natsjs.MsgRollup: {natsjs.MsgRollupSubject}}})
	in := receive(t, b.subscribe(b.subscriber("g"), b.topic("in")))
	in.Metadata.Set(natsjs.MsgRollup, natsjs.MsgRollupAll)
	in.Metadata.Set(natsjs.MsgRollup+"#2", natsjs.MsgRollupAll)
	must(t, (&jetstream.Publisher{Conn: b.nc}).Publish(b.topic("out"), in.Copy()))
	errs := (&jetstream.Sink{Conn: b.nc}).PublishBatch(ctx(t), []outbox.Row{{DedupID: "dedup-1", Topic: b.topic("out"), Metadata: in.Metadata}})
	must(t, errs[0])
	in.Ack()

	messages := b.subscribe(b.subscriber("g"), b.topic("out"))
	for _, id := range []string{"", "dedup-1"} {
		out := receive(t, messages)
		d, _ := jetstream.FromContext(out.Context())
		if d.MsgID != id || d.Header.Get(natsjs.MsgRollup) != "" || d.Header.Get("tenant") != "" {
			t.Errorf("headers %v", d.Header)
		}
		out.Ack()
	}
	out := message.NewMessage("", nil)
	out.Metadata.Set(natsjs.MsgRollup, natsjs.MsgRollupAll)
	must(t, (&jetstream.Publisher{Conn: b.nc, ServerHeaders: true}).Publish(b.topic("out"), out))
	stream, err := b.js.Stream(ctx(t), b.stream)
	must(t, err)
	if n := stream.CachedInfo().State.Msgs; n != 1 {
		t.Errorf("%d messages after a rollup", n)
	}
}

func TestPublishEndsWithTheMessagesContext(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	err := (&jetstream.Publisher{Conn: b.nc}).Publish(b.topic("a"), message.NewMessageWithContext(ended, "uuid-1", nil))
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// rows makes outbox rows with the payloads 0, 1, 2 ...
func rows(n int, topic string) []outbox.Row {
	rows := make([]outbox.Row, n)
	for i := range rows {
		rows[i] = outbox.Row{ID: int64(i), DedupID: fmt.Sprint(topic, " ", i), Topic: topic, UUID: fmt.Sprint("uuid-", i), Payload: fmt.Append(nil, i)}
	}
	return rows
}

func TestTheSinkPublishesABatchInOrder(t *testing.T) {
	t.Parallel()
	const total = 5000 // more than may be unconfirmed
	b := newBench(t, nil)
	sink := &jetstream.Sink{Conn: b.nc}
	batch := rows(total, b.topic("a"))
	batch[7].Metadata = message.Metadata{"tenant": "acme", "Via": "one", "Via#2": "two"}
	batch[9].Metadata = message.Metadata{"tenant": "umbrella"}
	for range 2 { // the second time they are duplicates to the stream
		for i, err := range sink.PublishBatch(ctx(t), batch) {
			if err != nil {
				t.Fatalf("row %d: %v", i, err)
			}
		}
	}
	s := b.subscriber("g")
	messages := b.subscribe(s, b.topic("a"))
	for i := range total {
		msg := receive(t, messages)
		d, _ := jetstream.FromContext(msg.Context())
		if msg.UUID != fmt.Sprint("uuid-", i) || string(msg.Payload) != fmt.Sprint(i) || d.MsgID != batch[i].DedupID || d.StreamSequence != uint64(i+1) {
			t.Fatalf("message %q %q with %+v, want %d", msg.UUID, msg.Payload, d, i)
		}
		switch {
		case i == 7 && (msg.Metadata.Get("tenant") != "acme" || fmt.Sprint(d.Header["Via"]) != "[one two]"),
			i == 9 && msg.Metadata.Get("tenant") != "umbrella",
			i != 7 && i != 9 && len(d.Header) != 2:
			t.Errorf("row %d has headers %v", i, d.Header)
		}
		msg.Ack()
	}
	nothing(t, messages, 50*time.Millisecond)
}

func TestTheSameUUIDOnThreeSubjectsArrivesThreeTimes(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	var batch []outbox.Row
	for i, name := range []string{"a", "b", "c"} {
		batch = append(batch, outbox.Row{ID: int64(i), DedupID: fmt.Sprint("dedup-", i), Topic: b.topic(name), UUID: "same"})
	}
	for _, err := range (&jetstream.Sink{Conn: b.nc}).PublishBatch(ctx(t), batch) {
		must(t, err)
	}
	messages := b.subscribe(b.subscriber("g"), b.topic("*"))
	for range 3 {
		msg := receive(t, messages)
		if msg.UUID != "same" {
			t.Errorf("UUID %q", msg.UUID)
		}
		msg.Ack()
	}
}

func TestBadRowsDoNotStopTheGoodOnes(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(cfg *natsjs.StreamConfig) { cfg.MaxMsgSize = 300_000 })
	good := outbox.Row{Topic: b.topic("a"), Payload: []byte("good")}
	bad := []struct {
		change  func(*outbox.Row)
		refused bool
		words   string
	}{
		{func(r *outbox.Row) { r.Payload = make([]byte, 2<<20) }, true, "max_payload"},
		{func(r *outbox.Row) { r.Payload = make([]byte, 1<<20) }, true, "max_payload"}, // too large with its headers
		{func(r *outbox.Row) { r.Payload = make([]byte, 300_000) }, true, "max_msg_size"},
		{func(r *outbox.Row) { r.Metadata = message.Metadata{"k": strings.Repeat("x", 70_000)} }, true, "65535"},
		{func(r *outbox.Row) { r.Metadata = message.Metadata{"k": "a\r\nb: c"} }, true, "line break"},
		{func(r *outbox.Row) { r.Metadata = message.Metadata{"k k": "v"} }, true, `"k k"`},
		{func(r *outbox.Row) { r.UUID = "a\nb" }, true, "line break"},
		{func(r *outbox.Row) { r.UUID = " a" }, true, "white space"},
		{func(r *outbox.Row) { r.UUID = "a\t" }, true, "white space"},
		{func(r *outbox.Row) { r.UUID, r.Metadata = "a ", message.Metadata{"k": "v", "k#2": "w"} }, true, "white space"},
		{func(r *outbox.Row) { r.Topic = "" }, true, "no topic"},
		{func(r *outbox.Row) { r.Topic = strings.Repeat("x", 100_000) }, true, "bytes are more than 3840"},
		{func(r *outbox.Row) { r.Topic = "a b" }, true, "space"},
		{func(r *outbox.Row) { r.Topic = b.topic("*") }, true, "pattern"},
		{func(r *outbox.Row) { r.Topic = b.topic(">") }, true, "pattern"},
		{func(r *outbox.Row) { r.Topic = b.topic("") }, true, "empty part"},
		{func(r *outbox.Row) { r.Topic = "$SYS.REQ" }, true, "server's own"},
		{func(r *outbox.Row) { r.Topic = "nobody.has.this" }, false, "no stream captures"},
		{func(r *outbox.Row) { r.Topic = "nobody.has.that" }, false, "no stream captures"},
	}
	batch := []outbox.Row{good}
	for _, c := range bad {
		row := good
		c.change(&row)
		batch = append(batch, row, good)
	}
	for i := range batch {
		batch[i].ID = int64(i)
		batch[i].DedupID = fmt.Sprint("dedup-", i)
	}
	errs := (&jetstream.Sink{Conn: b.nc}).PublishBatch(ctx(t), batch)
	for i, err := range errs {
		if i%2 == 0 {
			if err != nil {
				t.Errorf("good row %d: %v", i, err)
			}
			continue
		}
		c := bad[i/2]
		complains(t, err, c.words, fmt.Sprintf("outbox row %d", i))
		if len(err.Error()) > 1000 { // the table keeps the beginning
			t.Errorf("row %d: the error has %d bytes", i, len(err.Error()))
		}
		if errors.Is(err, outbox.ErrRefused) != c.refused || errors.Is(err, outbox.ErrUnavailable) {
			t.Errorf("row %d: %v", i, err)
		}
	}
	messages := b.subscribe(b.subscriber("g"), b.topic("a"))
	for range len(bad) + 1 {
		msg := receive(t, messages)
		if !bytes.Equal(msg.Payload, good.Payload) {
			t.Errorf("a message of %d bytes", len(msg.Payload))
		}
		msg.Ack()
	}
	nothing(t, messages, 50*time.Millisecond)
}

// A full stream is not the row's fault, nor should it hold up other streams.
func TestAFullStreamDefersTheRow(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(cfg *natsjs.StreamConfig) {
		cfg.MaxMsgs = 2
		cfg.Discard = natsjs.DiscardNew
	})
	errs := (&jetstream.Sink{Conn: b.nc}).PublishBatch(ctx(t), rows(3, b.topic("a")))
	must(t, errs[0])
	must(t, errs[1])
	complains(t, errs[2], "maximum messages exceeded")
	if errors.Is(errs[2], outbox.ErrRefused) || errors.Is(errs[2], outbox.ErrUnavailable) {
		t.Error(errs[2])
	}
}

func TestLargeRowsAreSentByAndBy(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	batch := rows(100, b.topic("a"))
	for i := range batch {
		batch[i].Payload = make([]byte, 1_000_000)
	}
	for i, err := range (&jetstream.Sink{Conn: b.nc}).PublishBatch(ctx(t), batch) {
		if err != nil {
			t.Fatalf("row %d: %v", i, err)
		}
	}
}

func TestASinkWithoutABrokerIsUnavailable(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	closed := connect(t)
	closed.Close()
	over, cancel := context.WithCancel(context.Background())
	cancel()
	for name, errs := range map[string][]error{
		"closed":  (&jetstream.Sink{Conn: closed}).PublishBatch(ctx(t), rows(3, b.topic("a"))),
		"no conn": (&jetstream.Sink{}).PublishBatch(ctx(t), rows(3, b.topic("a"))),
		"no time": (&jetstream.Sink{Conn: b.nc}).PublishBatch(over, rows(3, b.topic("a"))),
		"no JetStream": (&jetstream.Sink{Conn: b.nc, APIPrefix: "$JS.nowhere.API"}).PublishBatch(ctx(t),
			rows(3, "nobody.has.this")),
	} {
		if len(errs) != 3 {
			t.Errorf("%s: %d errors", name, len(errs))
		}
		for _, err := range errs {
			if !errors.Is(err, outbox.ErrUnavailable) || errors.Is(err, outbox.ErrRefused) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if errs := (&jetstream.Sink{Conn: b.nc}).PublishBatch(ctx(t), nil); len(errs) != 0 {
		t.Errorf("nothing to publish: %v", errs)
	}
}

// Acknowledgements that do not come must not hold the relay's transaction open.
func TestTheSinkReturnsAtTheDeadline(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	silent, err := b.nc.SubscribeSync(b.prefix + "silent") // takes the messages and says nothing
	must(t, err)
	defer silent.Unsubscribe()
	batch := append(rows(2, b.prefix+"silent"), rows(2, b.topic("a"))...)
	short, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	begun := time.Now()
	errs := (&jetstream.Sink{Conn: b.nc}).PublishBatch(short, batch)
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	for i, err := range errs {
		if i < 2 && !errors.Is(err, outbox.ErrUnavailable) || i >= 2 && err != nil {
			t.Errorf("row %d: %v", i, err)
		}
	}
}
