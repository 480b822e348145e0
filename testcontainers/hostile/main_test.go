package hostile_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/oncemill/oncemill/testcontainers"
	"github.com/oncemill/oncemill/testcontainers/internal/hostile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*hostile.Patience)
	t.Cleanup(cancel)
	return ctx
}

// A bench is a stream of a test's own, which captures prefix.>
type bench struct {
	t      *testing.T
	url    string
	nc     *nats.Conn
	js     natsjs.JetStream
	stream natsjs.Stream
	prefix string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, url: testcontainers.NATS(t).URL, prefix: "h" + strings.ToLower(rand.Text()[:12])}
	nc, err := nats.Connect(b.url, nats.MaxReconnects(-1))
	must(t, err)
	closed := make(chan struct{})
	nc.SetClosedHandler(func(*nats.Conn) { close(closed) })
	t.Cleanup(func() {
		nc.Close()
		<-closed // its goroutines end shortly before
	})
	b.nc = nc
	b.js, err = natsjs.New(nc)
	must(t, err)
	b.stream, err = b.js.CreateStream(within(t), natsjs.StreamConfig{Name: b.prefix, Subjects: []string{b.prefix + ".>"}, Storage: natsjs.MemoryStorage})
	must(t, err)
	t.Cleanup(func() { _ = b.js.DeleteStream(context.Background(), b.prefix) }) // it goes with the server in any case
	return b
}

// info is that of the stream.
func (b *bench) info() *natsjs.StreamInfo {
	b.t.Helper()
	info, err := b.stream.Info(within(b.t))
	must(b.t, err)
	return info
}

// store publishes a message as a foreign producer does, and returns its place in the stream.
func (b *bench) store(subject string, m *hostile.Message) (place string, err error) {
	b.t.Helper()
	if m.Raw != "" {
		before := b.info().State.LastSeq
		b.sendRaw(subject, m)
		return fmt.Sprint(before + 1), nil
	}
	raw := &nats.Msg{Subject: subject, Header: make(nats.Header), Data: m.Payload}
	if m.UUID != "" {
		raw.Header.Set("_watermill_message_uuid", m.UUID)
	}
	for _, h := range m.Headers {
		raw.Header[h.Name] = append(raw.Header[h.Name], h.Value)
	}
	ack, err := b.js.PublishMsg(within(b.t), raw)
	if err != nil {
		return "", err
	}
	return fmt.Sprint(ack.Sequence), nil
}

// sendRaw says something to the server that no client library would.
func (b *bench) sendRaw(subject string, m *hostile.Message) {
	b.t.Helper()
	u, err := url.Parse(b.url)
	must(b.t, err)
	conn, err := net.Dial("tcp", u.Host)
	must(b.t, err)
	defer conn.Close()
	in := bufio.NewReader(conn)
	_, err = in.ReadString('\n') // INFO
	must(b.t, err)
	_, err = fmt.Fprintf(conn, "CONNECT {\"verbose\":false,\"headers\":true}\r\nHPUB %s %d %d\r\n%s%s\r\nPING\r\n", subject, len(m.Raw), len(m.Raw)+len(m.Payload), m.Raw, m.Payload)
	must(b.t, err)
	line, err := in.ReadString('\n')
	must(b.t, err)
	if !strings.HasPrefix(line, "PONG") {
		b.t.Fatalf("%s: %s", m.Name, line)
	}
}

// arrived calls each with the dedup ids of all messages on a subject.
func (b *bench) arrived(subject string, each func(dedupID string)) {
	b.t.Helper()
	state := b.info().State
	for seq := state.FirstSeq; seq <= state.LastSeq; seq++ {
		msg, err := b.stream.GetMsg(within(b.t), seq)
		if errors.Is(err, nats.ErrBadHeaderMsg) { // it is not ours
			continue
		}
		must(b.t, err)
		if msg.Subject == subject {
			each(msg.Header.Get(nats.MsgIdHdr))
		}
	}
}
