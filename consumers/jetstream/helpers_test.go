package jetstream_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/oncemill/oncemill/consumers/jetstream"
	"github.com/oncemill/oncemill/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is for what should happen at once, on a busy machine.
const patience = 20 * time.Second

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A bench is a stream of a test's own on the shared server.
type bench struct {
	t      testing.TB
	nc     *nats.Conn
	js     natsjs.JetStream
	stream string
	prefix string // the stream captures prefix.>
}

func connect(t testing.TB, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(testenv.NATSURL(t), append(opts, nats.MaxReconnects(-1))...)
	must(t, err)
	t.Cleanup(func() {
		if nc.IsClosed() {
			return
		}
		closed := make(chan struct{})
		nc.SetClosedHandler(func(*nats.Conn) { close(closed) })
		nc.Close()
		<-closed // its goroutines end shortly before
	})
	return nc
}

// newBench makes a stream. change may be nil.
func newBench(t testing.TB, change func(*natsjs.StreamConfig)) *bench {
	t.Helper()
	nc := connect(t)
	js, err := natsjs.New(nc)
	must(t, err)
	name := "t" + strings.ToLower(rand.Text()[:12])
	b := &bench{t: t, nc: nc, js: js, stream: strings.ToUpper(name), prefix: name}
	b.createStream(change)
	t.Cleanup(func() { b.js.DeleteStream(context.Background(), b.stream) })
	return b
}

func (b *bench) createStream(change func(*natsjs.StreamConfig)) {
	b.t.Helper()
	cfg := natsjs.StreamConfig{Name: b.stream, Subjects: []string{b.prefix + ".>"}, Storage: natsjs.MemoryStorage}
	if change != nil {
		change(&cfg)
	}
	_, err := b.js.CreateStream(ctx(b.t), cfg)
	must(b.t, err)
}

func (b *bench) topic(name string) string { return b.prefix + "." + name }

// subscriber returns one with settings that suit a test.
func (b *bench) subscriber(group string) *jetstream.Subscriber {
	s := &jetstream.Subscriber{Conn: b.nc, Group: group, DrainTimeout: 5 * time.Second, Logger: slog.New(slog.DiscardHandler)}
	b.t.Cleanup(func() { s.Close() })
	return s
}

func (b *bench) subscribe(s *jetstream.Subscriber, topic string) <-chan *message.Message {
	b.t.Helper()
	messages, err := s.Subscribe(context.Background(), topic)
	must(b.t, err)
	return messages
}

// publish stores n messages with the payloads 0, 1, 2 ...
func (b *bench) publish(topic string, n int) {
	b.t.Helper()
	for i := range n {
		_, err := b.js.PublishAsync(topic, fmt.Append(nil, i))
		must(b.t, err)
	}
	select {
	case <-b.js.PublishAsyncComplete():
	case <-time.After(patience):
		b.t.Fatal("the messages are not stored")
	}
}

func (b *bench) store(msg *nats.Msg) {
	b.t.Helper()
	_, err := b.js.PublishMsg(ctx(b.t), msg)
	must(b.t, err)
}

func (b *bench) consumer(name string) *natsjs.ConsumerInfo {
	b.t.Helper()
	c, err := b.js.Consumer(ctx(b.t), b.stream, name)
	must(b.t, err)
	info, err := c.Info(ctx(b.t))
	must(b.t, err)
	return info
}

func (b *bench) consumers() (names []string) {
	b.t.Helper()
	stream, err := b.js.Stream(ctx(b.t), b.stream)
	must(b.t, err)
	lister := stream.ConsumerNames(ctx(b.t))
	for name := range lister.Name() {
		names = append(names, name)
	}
	must(b.t, lister.Err())
	return names
}

// durable is the name of the consumer that a group has for a topic of letters.
func durable(group, topic string) string {
	return group + "~" + strings.ReplaceAll(topic, ".", "~")
}

// said returns what is said about the stream's messages: acknowledgements, signs
// of life and so on.
func (b *bench) said() <-chan *nats.Msg {
	b.t.Helper()
	c := make(chan *nats.Msg, 10_000)
	_, err := b.nc.ChanSubscribe("$JS.ACK."+b.stream+".>", c)
	must(b.t, err)
	must(b.t, b.nc.Flush())
	return c
}

// await waits until something begins with the words.
func await(t testing.TB, said <-chan *nats.Msg, words string) *nats.Msg {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case msg := <-said:
			if strings.HasPrefix(string(msg.Data), words) {
				return msg
			}
		case <-timeout:
			t.Fatalf("nobody says %q", words)
		}
	}
}

func receive(t testing.TB, messages <-chan *message.Message) *message.Message {
	t.Helper()
	select {
	case msg, ok := <-messages:
		if !ok {
			t.Fatal("the channel is closed")
		}
		return msg
	case <-time.After(patience):
		t.Fatal("no message arrives")
		return nil
	}
}

func attempt(t testing.TB, msg *message.Message) uint64 {
	t.Helper()
	d, ok := jetstream.FromContext(msg.Context())
	if !ok {
		t.Fatal("the message's context has no Delivery")
	}
	return d.Attempt
}

// nothing waits a moment for a message that should not come.
func nothing(t testing.TB, messages <-chan *message.Message, moment time.Duration) {
	t.Helper()
	select {
	case msg, ok := <-messages:
		if ok {
			t.Fatalf("message %q arrives", msg.Payload)
		}
	case <-time.After(moment):
	}
}

// until waits for a state of the server of which there is no signal.
func until(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func ctx(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// complains checks that an error is there and has all the words.
func complains(t testing.TB, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", words)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("the error does not say %q: %v", word, err)
		}
	}
}
