package conditions_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// The broker stores all of a batch, and acknowledges some: what it did not acknowledge
// is published again, under the same id.
func TestABrokerThatAcknowledgesSomeOfABatch(t *testing.T) {
	t.Parallel()
	const keys, total, every, most = 50, 10_000, 100, 12
	s := newSite(t, nil)
	var lost atomic.Int64
	s.natsURL = loseAcks(t, s.natsURL, every, most, &lost)
	s.load("a", 0, total, keys)
	d := s.relay("--publish-timeout", "1s")
	s.awaitEmpty()
	d.stop()
	repeated, n := s.arrived(total, keys), int(lost.Load())
	t.Logf("%d acknowledgements were lost, %d messages repeated", n, repeated)
	if n != most || repeated != n {
		t.Errorf("%d acknowledgements were lost, want %d; %d messages came twice, want as many", n, most, repeated)
	}
}

// loseAcks returns the URL of a proxy that loses every so manyth acknowledgement of a
// stream, most times in all.
func loseAcks(t *testing.T, natsURL string, every, most int64, lost *atomic.Int64) string {
	t.Helper()
	u, err := url.Parse(natsURL)
	must(t, err)
	target := u.Host
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	var working sync.WaitGroup
	var seen atomic.Int64
	working.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				client.Close()
				return
			}
			t.Cleanup(func() { client.Close(); server.Close() })
			working.Go(func() { io.Copy(server, client); server.Close() })
			working.Go(func() {
				defer client.Close()
				passFrames(client, bufio.NewReader(server), func(payload []byte) bool {
					isAck := bytes.HasPrefix(payload, []byte(`{"stream":"A","seq":`))
					if !isAck || seen.Add(1)%every != 0 || lost.Load() >= most {
						return true
					}
					lost.Add(1)
					return false
				})
			})
		}
	})
	t.Cleanup(working.Wait) // after the connections are closed
	t.Cleanup(func() { listener.Close() })
	u.Host = listener.Addr().String()
	return u.String()
}

// passFrames copies what a NATS server says, but for the messages whose payload is not
// to be kept.
func passFrames(to io.Writer, from *bufio.Reader, keep func(payload []byte) bool) {
	for {
		line, err := from.ReadBytes('\n')
		if err != nil {
			return
		}
		fields, size := strings.Fields(string(line)), 0
		if len(fields) > 3 && fields[0] == "MSG" {
			if _, err := fmt.Sscan(fields[len(fields)-1], &size); err != nil {
				return
			}
			payload := make([]byte, size+len("\r\n"))
			if _, err := io.ReadFull(from, payload); err != nil {
				return
			}
			if !keep(payload) {
				continue
			}
			line = append(line, payload...)
		}
		if _, err := to.Write(line); err != nil {
			return
		}
	}
}
