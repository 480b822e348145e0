package kafkaserver_test

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/oncemill/oncemill/testcontainers/kafkaserver"
)

func TestAKilledServerKeepsItsTopics(t *testing.T) {
	t.Parallel()
	server := start(t, kafkaserver.Options{})
	client := connect(t, server)
	create(t, client)
	publish(t, client, "a", "b")
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if server.Running() {
		t.Error("the server still runs")
	}
	address := server.Broker()
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if server.Broker() != address {
		t.Errorf("it is at %s now, and was at %s", server.Broker(), address)
	}
	publish(t, client, "c")
	if values := read(t, connect(t, server), 3); values != "a b c" {
		t.Errorf("the topic has %s", values)
	}
}

func TestARestartedServerKeepsItsTopics(t *testing.T) {
	t.Parallel()
	server := start(t, kafkaserver.Options{})
	client := connect(t, server)
	create(t, client)
	publish(t, client, "a")
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	publish(t, client, "b")
	if values := read(t, connect(t, server), 2); values != "a b" {
		t.Errorf("the topic has %s", values)
	}
	if err := server.Start(t.Context()); err == nil {
		t.Error("a running server could be started")
	}
	for range 2 {
		if err := server.Stop(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAFrozenServerDoesNotAnswerUntilItIsThawed(t *testing.T) {
	t.Parallel()
	server := start(t, kafkaserver.Options{})
	client := connect(t, server)
	create(t, client)
	publish(t, client, "a")
	if err := server.Freeze(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := client.Ping(ctx); err == nil {
		t.Error("the frozen server answered")
	}
	if err := server.Thaw(); err != nil {
		t.Fatal(err)
	}
	publish(t, client, "b")
	if err := server.Freeze(); err != nil {
		t.Fatal(err)
	}
	if err := server.Stop(); err != nil {
		t.Errorf("stop a frozen server: %v", err)
	}
}

// A server that is killed again before it has come back is no reason to give up.
func TestAKillCommandRestartsAServerThatIsKeptRunning(t *testing.T) {
	t.Parallel()
	server := start(t, kafkaserver.Options{})
	client := connect(t, server)
	create(t, client)
	ctx, cancel := context.WithCancel(t.Context())
	kept := make(chan error, 1)
	go func() { kept <- server.KeepRunning(ctx) }()
	kill := func() {
		command := server.KillCommand()
		if output, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", command, err, output)
		}
	}
	publish(t, client, "a")
	kill()
	kill()
	publish(t, client, "b")
	kill()
	if values := read(t, connect(t, server), 2); values != "a b" {
		t.Errorf("the topic has %s", values)
	}
	cancel()
	if err := <-kept; err != nil {
		t.Error(err)
	}
}

func TestConfigurationReachesTheServer(t *testing.T) {
	t.Parallel()
	server := start(t, kafkaserver.Options{Config: "message.max.bytes=1000\ngroup.min.session.timeout.ms=250"})
	client := connect(t, server)
	for name, want := range map[string]string{
		"message.max.bytes":            "1000",
		"group.min.session.timeout.ms": "250", // which is set already
		"auto.create.topics.enable":    "false",
	} {
		if got := setting(t, client, name); got != want {
			t.Errorf("%s is %q, not %q", name, got, want)
		}
	}
}

func TestATopicThatNobodyHasCreatedIsAnError(t *testing.T) {
	t.Parallel()
	server := start(t, kafkaserver.Options{})
	client, err := kgo.NewClient(kgo.SeedBrokers(server.Broker()), kgo.AllowAutoTopicCreation(),
		kgo.UnknownTopicRetries(1))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	err = client.ProduceSync(within(t), &kgo.Record{Topic: topic}).FirstErr()
	if !errors.Is(err, kerr.UnknownTopicOrPartition) {
		t.Errorf("the error is %v", err)
	}
	topics, err := kadm.NewClient(client).ListTopics(within(t))
	if err != nil || len(topics) > 0 {
		t.Errorf("there are the topics %v, %v", topics.Names(), err)
	}
}

func TestAServerThatDoesNotStartSaysWhy(t *testing.T) {
	t.Parallel()
	java := needJava(t)
	for name, c := range map[string]struct{ config, want string }{
		"a value that is none":     {"broker.heartbeat.interval.ms=soon", "Invalid value soon for configuration broker.heartbeat.interval.ms"},
		"found when it is started": {"authorizer.class.name=no.such.Class", "no.such.Class"},
	} {
		_, err := kafkaserver.Start(t.Context(), kafkaserver.Options{Java: java, Config: c.config})
		if err == nil || !strings.Contains(err.Error(), "its log says") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: the error is %v", name, err)
		}
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	_, err = kafkaserver.Start(t.Context(), kafkaserver.Options{Java: java, Port: port})
	if err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("on a port that is taken the error is %v", err)
	}
}

func TestAStartThatIsGivenUpLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	java := needJava(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second) // more than formatting takes, less than the start
	defer cancel()
	if _, err := kafkaserver.Start(ctx, kafkaserver.Options{Java: java, Dir: t.TempDir()}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the error is %v", err)
	}
}

func TestTopicsInAGivenDirectoryAreUsedAgain(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a server, with ümlauts")
	for run := range 2 {
		server := start(t, kafkaserver.Options{Dir: dir})
		client := connect(t, server)
		if run == 0 {
			create(t, client)
			publish(t, client, "a")
		}
		if values := read(t, client, 1); values != "a" {
			t.Errorf("the topic has %s", values)
		}
		client.Close()
		if err := server.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "server.properties")); err != nil {
		t.Errorf("Close has removed a directory that was given: %v", err)
	}
}

func TestClosingAServerLeavesNothing(t *testing.T) {
	t.Parallel()
	server := start(t, kafkaserver.Options{})
	pid, err := os.ReadFile(filepath.Join(server.Dir(), "pid"))
	if err != nil {
		t.Fatal(err)
	}
	if ended(string(pid)) {
		t.Fatalf("there is no process %s", pid)
	}
	for range 2 {
		if err := server.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if !ended(string(pid)) {
		t.Error("the process is still there")
	}
	if _, err := os.Stat(server.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", server.Dir(), err)
	}
	if err := server.Start(t.Context()); err == nil {
		t.Error("a closed server could be started")
	}
}

// However a program ends, also by SIGKILL, no server and no file of a server
// outlives it.
func TestNothingOutlivesAKilledProgram(t *testing.T) {
	t.Parallel()
	needJava(t)
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
