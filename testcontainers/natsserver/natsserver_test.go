package natsserver_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/oncemill/oncemill/testcontainers/natsserver"
)

// parentVariable makes the test binary play a program that starts a server and
// is then killed.
const parentVariable = "ONCEMILL_TEST_PARENT"

func TestMain(m *testing.M) {
	if os.Getenv(parentVariable) != "" {
		parent()
		return
	}
	goleak.VerifyTestMain(m)
}

// parent starts a server, freezes it so that it could not notice anything by
// itself, prints its pid and directory, and waits to be killed.
func parent() {
	server, err := natsserver.Start(context.Background(), natsserver.Options{})
	if err == nil {
		pid, _ := os.ReadFile(filepath.Join(server.Dir(), "pid"))
		err = server.Freeze()
		if err == nil {
			fmt.Println(strings.TrimSpace(string(pid)), server.Dir())
			bufio.NewScanner(os.Stdin).Scan() // the end of the input, if the test ends early
		}
	}
	fmt.Fprintln(os.Stderr, "parent:", err)
	os.Exit(1)
}

func TestAKilledServerKeepsItsStreams(t *testing.T) {
	t.Parallel()
	server := start(t, natsserver.Options{})
	js := connect(t, server.URL())
	stream(t, js)
	publish(t, js, 10)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if server.Running() {
		t.Error("the server still runs")
	}
	address := server.URL()
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if server.URL() != address {
		t.Errorf("it is at %s now, and was at %s", server.URL(), address)
	}
	if n := stored(t, connect(t, address)); n != 10 {
		t.Errorf("the stream has %d messages, not 10", n)
	}
}

func TestARestartedServerKeepsItsStreams(t *testing.T) {
	t.Parallel()
	server := start(t, natsserver.Options{})
	js := connect(t, server.URL())
	stream(t, js)
	publish(t, js, 10)
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := stored(t, connect(t, server.URL())); n != 10 {
		t.Errorf("the stream has %d messages, not 10", n)
	}
}

func TestAFrozenServerDoesNotAnswerUntilItIsThawed(t *testing.T) {
	t.Parallel()
	server := start(t, natsserver.Options{})
	js := connect(t, server.URL())
	stream(t, js)
	if err := server.Freeze(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := js.Publish(ctx, "effects.x", nil); err == nil {
		t.Error("the frozen server answered")
	}
	if err := server.Thaw(); err != nil {
		t.Fatal(err)
	}
	publish(t, js, 1)
}

func TestAKillCommandRestartsAServerThatIsKeptRunning(t *testing.T) {
	t.Parallel()
	server := start(t, natsserver.Options{})
	js := connect(t, server.URL())
	stream(t, js)
	ctx, cancel := context.WithCancel(t.Context())
	kept := make(chan error, 1)
	go func() { kept <- server.KeepRunning(ctx) }()
	for range 3 {
		publish(t, js, 1)
		command := server.KillCommand()
		if output, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", command, err, output)
		}
	}
	eventually(t, "the server is back with its messages", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		s, err := js.Stream(ctx, "effects")
		return err == nil && s.CachedInfo().State.Msgs == 3
	})
	cancel()
	if err := <-kept; err != nil {
		t.Error(err)
	}
}

func TestConfigurationReachesTheServer(t *testing.T) {
	t.Parallel()
	server := start(t, natsserver.Options{Config: "max_payload: 1KB"})
	js := connect(t, server.URL())
	if limit := js.Conn().MaxPayload(); limit != 1024 {
		t.Errorf("the largest payload is %d", limit)
	}
	_, err := natsserver.Start(t.Context(), natsserver.Options{Config: "no such {"})
	if err == nil || !strings.Contains(err.Error(), "its log says") {
		t.Errorf("the error is %v", err)
	}
}

func TestAnEmbeddedServerHasJetStream(t *testing.T) {
	t.Parallel()
	server, err := natsserver.Embed()
	if err != nil {
		t.Fatal(err)
	}
	js := connect(t, server.URL())
	stream(t, js)
	publish(t, js, 1)
	js.Conn().Close()
	if err := server.Close(); err != nil {
		t.Error(err)
	}
}

// However a program ends, also by SIGKILL, no server and no file of a server
// outlives it.
func TestNothingOutlivesAKilledProgram(t *testing.T) {
	t.Parallel()
	program := exec.Command(os.Args[0])
	program.Env = append(os.Environ(), parentVariable+"=1")
	program.Stderr = os.Stderr
	input, err := program.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer input.Close()
	output, err := program.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = program.Wait() }() // it ended as it should: killed
	defer func() { _ = program.Process.Kill() }()

	lines := bufio.NewScanner(output)
	lines.Scan()
	pid, dir, _ := strings.Cut(lines.Text(), " ")
	if _, err := strconv.Atoi(pid); err != nil {
		t.Fatalf("the program said %q", lines.Text())
	}
	if _, err := os.Stat(dir); err != nil {
		t.Fatal(err)
	}
	if err := program.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the server has ended", func() bool { return ended(pid) })
	eventually(t, dir+" is removed", func() bool {
		_, err := os.Stat(dir)
		return os.IsNotExist(err)
	})
}

// ended tells whether a process is gone, or only waits to be collected.
func ended(pid string) bool {
	state, _ := exec.Command("ps", "-o", "state=", "-p", pid).Output()
	s := strings.TrimSpace(string(state))
	return s == "" || strings.HasPrefix(s, "Z")
}

func start(t *testing.T, options natsserver.Options) *natsserver.Server {
	t.Helper()
	server, err := natsserver.Start(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Errorf("close the server: %v", err)
		}
	})
	return server
}

func connect(t *testing.T, address string) jetstream.JetStream {
	t.Helper()
	conn, err := nats.Connect(address, nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func stream(t *testing.T, js jetstream.JetStream) {
	t.Helper()
	_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "effects", Subjects: []string{"effects.>"}})
	if err != nil {
		t.Fatal(err)
	}
}

// publish stores messages; a server that is just being started may take a while.
func publish(t *testing.T, js jetstream.JetStream, messages int) {
	t.Helper()
	for range messages {
		id := jetstream.WithMsgID(nats.NewInbox()) // one that was stored unseen is stored once
		eventually(t, "the message is stored", func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := js.Publish(ctx, "effects.x", nil, id)
			return err == nil
		})
	}
}

func stored(t *testing.T, js jetstream.JetStream) uint64 {
	t.Helper()
	s, err := js.Stream(t.Context(), "effects")
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().State.Msgs
}

// eventually waits until something that gives no signal has become true.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("still not so: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
