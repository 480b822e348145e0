package main_test

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	main "github.com/oncemill/oncemill/cmd/oncemill"
	"github.com/oncemill/oncemill/internal/testenv"
	"github.com/oncemill/oncemill/outbox"
)

// patience bounds every wait for something that should happen at once.
const patience = 30 * time.Second

// servers are what one test's relay works on.
type servers struct {
	db      *sql.DB
	dbURL   string
	natsURL string
	stream  jetstream.Stream
	subject string
}

// start gives a test a database and a stream of its own.
func start(t *testing.T) *servers {
	t.Helper()
	s := &servers{dbURL: testenv.PostgresURL(t), natsURL: testenv.NATSURL(t)}
	s.db = testenv.Open(t, s.dbURL)
	s.subject = regexp.MustCompile(`\W`).ReplaceAllString(t.Name(), "_")
	conn, err := nats.Connect(s.natsURL)
	must(t, err)
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	must(t, err)
	s.stream, err = js.CreateStream(t.Context(), jetstream.StreamConfig{Name: s.subject, Subjects: []string{s.subject}, Storage: jetstream.MemoryStorage})
	must(t, err)
	t.Cleanup(func() { _ = js.DeleteStream(context.Background(), s.subject) })
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// publish writes n messages to the outbox.
func (s *servers) publish(t *testing.T, n int) {
	t.Helper()
	msgs := make([]*message.Message, n)
	for i := range msgs {
		msgs[i] = message.NewMessage(fmt.Sprint(i), []byte("payload"))
	}
	must(t, (&outbox.Publisher{DB: s.db, Notify: s.db}).Publish(s.subject, msgs...))
}

// inStream returns how many messages the broker has stored.
func (s *servers) inStream(t *testing.T) int {
	t.Helper()
	info, err := s.stream.Info(context.Background())
	must(t, err)
	return int(info.State.Msgs)
}

func (s *servers) inOutbox(t *testing.T) (n int) {
	t.Helper()
	must(t, s.db.QueryRow(`SELECT count(*) FROM oncemill.outbox`).Scan(&n))
	return n
}

// A relay is a running `oncemill relay`, in this process.
type relay struct {
	log  *testenv.Log
	stop func() (exitCode int)
}

func (s *servers) relay(t *testing.T, flags ...string) *relay {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &relay{log: new(testenv.Log)}
	env := map[string]string{"ONCEMILL_DATABASE_URL": s.dbURL, "ONCEMILL_NATS_URL": s.natsURL, "ONCEMILL_POLL_INTERVAL": "50ms"}
	code := make(chan int, 1)
	go func() { code <- main.Run(ctx, append([]string{"relay"}, flags...), env, io.Discard, r.log) }()
	r.stop = sync.OnceValue(func() int {
		cancel()
		return <-code
	})
	t.Cleanup(func() {
		if code := r.stop(); code != 0 {
			t.Errorf("exit code %d:\n%s", code, r.log)
		}
	})
	return r
}

// http returns the address that the relay serves probes on.
func (r *relay) http(t *testing.T) string {
	t.Helper()
	var found []string
	address := regexp.MustCompile(`http=([0-9.:]+)`)
	poll(t, func() bool {
		found = address.FindStringSubmatch(r.log.String())
		return found != nil
	})
	return "http://" + found[1]
}

func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	response, err := http.Get(url)
	must(t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	must(t, err)
	return response.StatusCode, string(text)
}

// poll waits until done returns true.
func poll(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("did not happen")
		}
	}
}

func TestRelay(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.publish(t, 1200)
	r := s.relay(t, "--http", "127.0.0.1:0", "--batch", "100", "--log-format", "json", "--log-level", "debug")
	poll(t, func() bool { return s.inOutbox(t) == 0 })
	if n := s.inStream(t); n != 1200 {
		t.Errorf("%d messages in the stream, want 1200", n)
	}
	if code := r.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	for _, want := range []string{`"msg":"relay starts"`, `"msg":"relay has stopped"`} {
		if !strings.Contains(r.log.String(), want) {
			t.Errorf("no %s in the log:\n%s", want, r.log)
		}
	}
}

func TestProbes(t *testing.T) {
	t.Parallel()
	s := start(t)
	r := s.relay(t, "--http", "127.0.0.1:0")
	base := r.http(t)
	ready := func() bool { status, _ := get(t, base+"/readyz"); return status == 200 }
	poll(t, ready)

	u, err := url.Parse(s.dbURL)
	must(t, err)
	name := strings.TrimPrefix(u.Path, "/")
	other := testenv.DB(t) // another database of the same server
	allow := func(connections bool) {
		_, err := other.Exec(fmt.Sprintf(`ALTER DATABASE %s WITH ALLOW_CONNECTIONS %v`, name, connections))
		must(t, err)
	}
	allow(false)
	_, err = other.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1`, name)
	must(t, err)
	poll(t, func() bool { return !ready() })
	if _, body := get(t, base+"/readyz"); !strings.Contains(body, "database") {
		t.Errorf("/readyz says %q", body)
	}
	if status, _ := get(t, base+"/livez"); status != 200 {
		t.Errorf("/livez answers %d while the database is away", status)
	}
	allow(true)
	poll(t, ready)
}

func TestRelayDoesNotStart(t *testing.T) {
	t.Parallel()
	s := start(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer taken.Close()
	for name, test := range map[string]struct {
		flags []string
		names []string
	}{
		"without schema":      {[]string{"--database-url", testenv.EmptyPostgresURL(t)}, []string{"no Oncemill tables", "oncemill migrate"}},
		"with another schema": {[]string{"--database-url", s.dbURL, "--schema", "other"}, []string{`"other"`, "oncemill migrate --schema other"}},
		"address taken":       {[]string{"--database-url", s.dbURL, "--http", taken.Addr().String()}, []string{"--http", "in use"}},
	} {
		code, _, stderr := call(t, nil, append([]string{"relay", "--nats-url", s.natsURL}, test.flags...)...)
		if code != 1 {
			t.Errorf("%s: exit code %d, want 1", name, code)
		}
		for _, want := range test.names {
			if !strings.Contains(stderr, want) {
				t.Errorf("%s: %q does not name %s", name, stderr, want)
			}
		}
	}
}

// binary builds the program as users run it.
var binary = sync.OnceValues(func() (string, error) {
	path := filepath.Join(buildDir, "oncemill")
	if out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

// process starts the built binary as a relay.
func (s *servers) process(t *testing.T, natsURL string, flags ...string) (*exec.Cmd, *testenv.Log) {
	t.Helper()
	path, err := binary()
	must(t, err)
	cmd := exec.Command(path, append([]string{"relay"}, flags...)...)
	cmd.Env = append(os.Environ(), "ONCEMILL_DATABASE_URL="+s.dbURL, "ONCEMILL_NATS_URL="+natsURL)
	log := new(testenv.Log)
	cmd.Stderr = log
	must(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd, log
}

// exited waits for a process to end.
func exited(t *testing.T, cmd *exec.Cmd) *os.ProcessState {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(patience):
		cmd.Process.Kill()
		<-done
		t.Fatal("the process did not end")
	}
	return cmd.ProcessState
}

// What the broker has is gone from the outbox, and what is not, is still there.
func TestSIGTERMDrains(t *testing.T) {
	t.Parallel()
	s := start(t)
	const total = 20_000
	s.publish(t, total)
	cmd, log := s.process(t, s.natsURL, "--batch", "50")
	poll(t, func() bool { return s.inStream(t) > 100 })
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	if state := exited(t, cmd); state.ExitCode() != 0 {
		t.Errorf("%v:\n%s", state, log)
	}
	published, left := s.inStream(t), s.inOutbox(t)
	if published+left != total {
		t.Errorf("%d published and %d left: want %d together", published, left, total)
	}
	t.Logf("%d published, %d left", published, left)
	if !strings.Contains(log.String(), "relay has stopped") {
		t.Errorf("log:\n%s", log)
	}
}

func TestSecondSignalQuits(t *testing.T) {
	t.Parallel()
	s := start(t)
	proxy := newProxy(t, s.natsURL)
	cmd, log := s.process(t, proxy.url, "--publish-timeout", "5m", "--drain-timeout", "5m")
	s.publish(t, 1)
	poll(t, func() bool { return s.inOutbox(t) == 0 })
	close(proxy.stalled)
	s.publish(t, 1)
	poll(t, func() bool { return proxy.swallowed.Load() > 0 }) // the relay waits for the broker now
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	done := make(chan struct{})
	go func() { defer close(done); cmd.Wait() }()
	select {
	case <-done:
		t.Fatalf("it did not drain: %v\n%s", cmd.ProcessState, log)
	case <-time.After(300 * time.Millisecond): // nothing is to happen
	}
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("it did not quit")
	}
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != syscall.SIGTERM {
		t.Errorf("it ended with %v", cmd.ProcessState)
	}
	poll(t, func() bool { return s.inOutbox(t) == 1 })
}

// A proxy stands between the relay and NATS. Once stalled is closed it passes
// nothing on any more.
type proxy struct {
	url       string
	stalled   chan struct{}
	swallowed atomic.Int64 // bytes
}

func newProxy(t *testing.T, natsURL string) *proxy {
	t.Helper()
	target, err := url.Parse(natsURL)
	must(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	p := &proxy{url: "nats://" + listener.Addr().String(), stalled: make(chan struct{})}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target.Host)
			if err != nil {
				client.Close()
				return
			}
			t.Cleanup(func() { client.Close(); server.Close() })
			conns.Go(func() { p.pass(server, client) })
			conns.Go(func() { p.pass(client, server) })
		}
	})
	t.Cleanup(conns.Wait)
	t.Cleanup(func() { listener.Close() })
	return p
}

// pass copies until the proxy stalls, and then swallows.
func (p *proxy) pass(to io.Writer, from io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		select {
		case <-p.stalled:
			p.swallowed.Add(int64(n))
		default:
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
	}
}

// What a relay with --keep has published comes again, from the commands alone.
func TestWhatARelayKeepsIsReplayed(t *testing.T) {
	t.Parallel()
	testenv.NeedsSchema(t, 6)
	s := start(t)
	s.publish(t, 20)
	s.relay(t, "--keep", "1h")
	poll(t, func() bool { return s.inStream(t) == 20 && s.inOutbox(t) == 0 })
	must(t, s.stream.Purge(t.Context()))
	code, stdout, stderr := call(t, map[string]string{"ONCEMILL_DATABASE_URL": s.dbURL}, "outbox", "replay", "--since", "1h")
	if code != 0 || !strings.HasPrefix(stdout, "20 kept messages are in the outbox again") {
		t.Fatalf("exit code %d, %s%s", code, stdout, stderr)
	}
	poll(t, func() bool { return s.inStream(t) == 20 && s.inOutbox(t) == 0 })
	var kept int
	must(t, s.db.QueryRow(`SELECT count(*) FROM oncemill.published`).Scan(&kept))
	if kept != 20 {
		t.Errorf("%d messages are kept, want 20", kept)
	}
}
